//! The limit on a service's concurrent connections. If many partitions use one service, a limit for
//! each partition keeps any of them from taking all permits.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use hvsock::tokio::{HvListener, HvStream};
use hvsock_sys::sync::lock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The connection limit of one service.
#[derive(Debug)]
pub(super) struct ConnectionLimit {
    permits: Arc<Semaphore>,
    per_partition: usize,
    used: Arc<Mutex<HashMap<String, usize>>>,
}

/// Permission for one connection; released on drop.
#[derive(Debug)]
pub(super) struct Permit {
    _permit: OwnedSemaphorePermit,
    partition: String,
    used: Arc<Mutex<HashMap<String, usize>>>,
}

impl ConnectionLimit {
    /// At most `permits` connections in total and `per_partition` from each partition.
    pub(super) fn new(permits: usize, per_partition: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(permits)),
            per_partition,
            used: Arc::default(),
        }
    }

    /// Waits for a free permit, then accepts a connection for it. A connection from a partition at
    /// its limit is closed at once. Fails with the listener's error.
    pub(super) async fn accept(&self, listener: &HvListener) -> io::Result<(HvStream, Permit)> {
        let mut permit = None;
        loop {
            let free = match permit.take() {
                Some(free) => free,
                None => Arc::clone(&self.permits).acquire_owned().await,
            };
            let free = free.map_err(io::Error::other)?;
            let (stream, _) = listener.accept().await?;
            let partition = stream.peer().map_or("", |peer| peer.partition()).to_owned();
            match self.grant(partition, free) {
                Ok(permit) => return Ok((stream, permit)),
                Err(free) => permit = Some(Ok(free)),
            }
        }
    }

    /// Grants the permit to the partition, or returns it if the partition is at its limit.
    fn grant(
        &self,
        partition: String,
        permit: OwnedSemaphorePermit,
    ) -> Result<Permit, OwnedSemaphorePermit> {
        let mut used = lock(&self.used);
        let count = used.entry(partition.clone()).or_default();
        if *count >= self.per_partition {
            return Err(permit);
        }
        *count += 1;
        Ok(Permit {
            _permit: permit,
            partition,
            used: Arc::clone(&self.used),
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut used = lock(&self.used);
        if let Some(count) = used.get_mut(&self.partition) {
            *count -= 1;
            if *count == 0 {
                used.remove(&self.partition);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_cannot_take_more_permits_than_its_limit() {
        let limit = ConnectionLimit::new(3, 2);
        let permit = || Arc::clone(&limit.permits).try_acquire_owned().unwrap();
        let first = limit.grant("web".into(), permit()).unwrap();
        let _second = limit.grant("web".into(), permit()).unwrap();
        let permit = limit.grant("web".into(), permit()).unwrap_err();
        let _other = limit.grant("db".into(), permit).unwrap();
        assert_eq!(limit.permits.available_permits(), 0);
        drop(first);
        let permit = Arc::clone(&limit.permits).try_acquire_owned().unwrap();
        let third = limit.grant("web".into(), permit).unwrap();
        drop((third, _second, _other));
        assert!(lock(&limit.used).is_empty());
        assert_eq!(limit.permits.available_permits(), 3);
    }
}
