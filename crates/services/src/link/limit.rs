//! The limit on a service's concurrent connections. If many partitions use one service, a limit for
//! each partition keeps any of them from taking all permits.
//!
//! A connection above the limit is accepted and refused with the limit's name. If it waited in the
//! listener's backlog, its client could not tell the wait from a service that hangs.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hvsock::tokio::{HvListener, HvStream};
use hvsock_sys::sync::lock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// The most connections that are being refused at once. Further ones are reset without a reason.
const REFUSALS: usize = 32;

/// How long a connection above the limit waits for another one that is just closing: its client may
/// have seen the end already, and connect again.
const CLOSING: Duration = Duration::from_millis(200);

/// The connection limit of one service.
#[derive(Debug)]
pub(super) struct ConnectionLimit {
    connections: usize,
    permits: Arc<Semaphore>,
    per_partition: usize,
    used: Arc<Mutex<HashMap<String, usize>>>,
    refusals: Arc<Semaphore>,
}

/// Permission for one connection; released on drop.
#[derive(Debug)]
pub(super) struct Permit {
    _permit: OwnedSemaphorePermit,
    partition: String,
    used: Arc<Mutex<HashMap<String, usize>>>,
}

/// Permission to refuse one connection; released on drop.
#[derive(Debug)]
pub(super) struct RefusalPermit {
    _permit: OwnedSemaphorePermit,
}

/// An accepted connection.
#[derive(Debug)]
pub(super) enum Accepted {
    /// To be served.
    Granted(HvStream, Permit),
    /// Above the limit, and to be told so.
    Refused(HvStream, RefusalPermit),
}

/// Delay before the next try when a connection cannot be accepted for lack of descriptors or memory.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Whether an error of `accept` is a lack of descriptors or memory, and not the end of the listener.
fn may_pass(error: &io::Error) -> bool {
    let is_limit = error.kind() == io::ErrorKind::QuotaExceeded;
    hvsock::refusal_of(error).is_none() && (is_limit || hvsock_sys::limits::is_shortage(error))
}

impl ConnectionLimit {
    /// At most `connections` in total and `per_partition` from each partition.
    pub(super) fn new(connections: usize, per_partition: usize) -> Self {
        Self {
            connections,
            permits: Arc::new(Semaphore::new(connections)),
            per_partition,
            used: Arc::default(),
            refusals: Arc::new(Semaphore::new(REFUSALS)),
        }
    }

    /// The reason for a refusal.
    pub(super) fn reason(&self, service: &str) -> String {
        let (all, each) = (self.connections, self.per_partition);
        match all == each {
            true => format!("the limit of {all} connections to {service} at once is reached"),
            false => format!(
                "the limit of {each} connections from one partition to {service} at once, \
                 or of {all} from all, is reached"
            ),
        }
    }

    /// Accepts a connection. Fails with the listener's error.
    pub(super) async fn accept(&self, listener: &HvListener) -> io::Result<Accepted> {
        loop {
            let (stream, _) = match listener.accept().await {
                Ok(accepted) => accepted,
                // The listener goes on, with the connections that wait for it.
                Err(error) if may_pass(&error) => {
                    tracing::debug!("cannot accept a connection yet: {error}");
                    tokio::time::sleep(RETRY_DELAY).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let partition = stream.peer().map_or("", |peer| peer.partition());
            if let Some(free) = self.free().await
                && let Some(permit) = self.grant(partition, free)
            {
                return Ok(Accepted::Granted(stream, permit));
            }
            match Arc::clone(&self.refusals).try_acquire_owned() {
                Ok(permit) => {
                    let permit = RefusalPermit { _permit: permit };
                    return Ok(Accepted::Refused(stream, permit));
                }
                // A clean end would look like an answer.
                Err(_) => stream.reset(),
            }
        }
    }

    /// A permit of those of all partitions together.
    async fn free(&self) -> Option<OwnedSemaphorePermit> {
        let free = Arc::clone(&self.permits).acquire_owned();
        timeout(CLOSING, free).await.ok()?.ok()
    }

    /// Grants a free permit to the partition, unless it is at its limit.
    fn grant(&self, partition: &str, permit: OwnedSemaphorePermit) -> Option<Permit> {
        let mut used = lock(&self.used);
        let count = used.entry(partition.to_owned()).or_default();
        if *count >= self.per_partition {
            return None;
        }
        *count += 1;
        Some(Permit {
            _permit: permit,
            partition: partition.to_owned(),
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

    #[tokio::test]
    async fn a_partition_cannot_take_more_permits_than_its_limit() {
        let limit = ConnectionLimit::new(3, 2);
        let grant = async |partition| limit.grant(partition, limit.free().await?);
        let first = grant("web").await.unwrap();
        let _second = grant("web").await.unwrap();
        assert!(grant("web").await.is_none());
        let _other = grant("db").await.unwrap();
        assert!(grant("cache").await.is_none(), "the limit in total");
        // One that is just closing counts as closed.
        let closing = async {
            tokio::task::yield_now().await;
            drop(first);
        };
        let (third, ()) = tokio::join!(grant("web"), closing);
        drop((third.unwrap(), _second, _other));
        assert!(lock(&limit.used).is_empty());
        assert_eq!(limit.permits.available_permits(), 3);
    }
}
