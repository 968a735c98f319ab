//! Places for a service's connections. Where many partitions use one service, none of them can take
//! all places.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hvsock::tokio::{HvListener, HvStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places of one service.
#[derive(Debug)]
pub(super) struct Room {
    places: Arc<Semaphore>,
    each: usize,
    taken: Arc<Mutex<HashMap<String, usize>>>,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(super) struct Held {
    _place: OwnedSemaphorePermit,
    partition: String,
    taken: Arc<Mutex<HashMap<String, usize>>>,
}

impl Room {
    /// So many places, and for each partition no more than `each`.
    pub(super) fn new(places: usize, each: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(places)),
            each,
            taken: Arc::default(),
        }
    }

    /// Waits for a place, and then for a connection to have it. Those of a partition that has all
    /// its places already are closed.
    pub(super) async fn accept(&self, listener: &HvListener) -> io::Result<(HvStream, Held)> {
        let mut place = None;
        loop {
            let free = match place.take() {
                Some(free) => free,
                None => Arc::clone(&self.places).acquire_owned().await,
            };
            let free = free.map_err(io::Error::other)?;
            let (stream, _) = listener.accept().await?;
            let partition = stream.peer().map_or("", |peer| peer.partition()).to_owned();
            match self.hold(partition, free) {
                Ok(held) => return Ok((stream, held)),
                Err(free) => place = Some(Ok(free)),
            }
        }
    }

    /// Gives the place to the partition, or back.
    fn hold(
        &self,
        partition: String,
        place: OwnedSemaphorePermit,
    ) -> Result<Held, OwnedSemaphorePermit> {
        let mut taken = locked(&self.taken);
        let count = taken.entry(partition.clone()).or_default();
        if *count >= self.each {
            return Err(place);
        }
        *count += 1;
        Ok(Held {
            _place: place,
            partition,
            taken: Arc::clone(&self.taken),
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut taken = locked(&self.taken);
        if let Some(count) = taken.get_mut(&self.partition) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.partition);
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_takes_its_own_places_and_no_others() {
        let room = Room::new(3, 2);
        let place = || Arc::clone(&room.places).try_acquire_owned().unwrap();
        let first = room.hold("web".into(), place()).unwrap();
        let _second = room.hold("web".into(), place()).unwrap();
        let place = room.hold("web".into(), place()).unwrap_err();
        let _other = room.hold("db".into(), place).unwrap();
        assert_eq!(room.places.available_permits(), 0);
        drop(first);
        let place = Arc::clone(&room.places).try_acquire_owned().unwrap();
        let third = room.hold("web".into(), place).unwrap();
        drop((third, _second, _other));
        assert!(locked(&room.taken).is_empty());
        assert_eq!(room.places.available_permits(), 3);
    }
}
