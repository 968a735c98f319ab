//! The pools of the service: read and changed without blocking the agent, and published to the watches.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use tonic::Status;

use super::facts;
use super::files::{FileError, Files};
use super::pool::{ChangeError, Pool};
use crate::guest::freeze::FreezeFlag;
use crate::wire::kvp::{Pair, Pool as WirePool};

/// How long a call waits for the disk and for earlier calls.
const TIMEOUT: Duration = Duration::from_secs(5);

/// All four pools as last read, by number.
pub(super) type Seen = [Arc<Pool>; 4];

/// All four pools.
pub(super) struct Store {
    /// The folder of the files; `None` for the default one. The default is determined for each
    /// call, because an agent starts long before everything is mounted.
    folder: Option<PathBuf>,
    frozen: FreezeFlag,
    /// A lock for each pool. Its holder keeps it until the disk answers, even if the call has timed
    /// out: so at most one thread for each pool ever waits for a disk.
    locks: [Arc<Mutex<()>>; 4],
    seen: watch::Sender<Seen>,
}

impl Store {
    pub(super) fn new(folder: Option<PathBuf>, frozen: FreezeFlag) -> Self {
        Self {
            folder,
            frozen,
            locks: Default::default(),
            seen: watch::Sender::new(Default::default()),
        }
    }

    /// Subscribes to the pools, beginning with their last state.
    pub(super) fn watch(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// Reads a pool.
    pub(super) async fn read(&self, which: WirePool) -> Result<Arc<Pool>, Status> {
        let folder = self.folder.clone();
        let read = move || match which {
            WirePool::Auto => Ok(facts::gather()),
            which => Files::at(folder).read(which),
        };
        let pool = self.exclusively(which, read).await?;
        Ok(self.publish(which, pool))
    }

    /// Changes a pool, or leaves it as it is if `change` fails.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        which: WirePool,
        change: impl FnOnce(&mut Pool) -> Result<T, ChangeError> + Send + 'static,
    ) -> Result<T, Status> {
        if self.frozen.is_set() {
            return Err(Status::unavailable("the guest's filesystems are frozen"));
        }
        let folder = self.folder.clone();
        let (done, pool) = self
            .exclusively(which, move || Files::at(folder).change(which, change))
            .await?;
        self.publish(which, pool);
        Ok(done)
    }

    /// Runs blocking work, one at a time for each pool and with a time limit.
    async fn exclusively<T: Send + 'static>(
        &self,
        which: WirePool,
        work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, Status> {
        let lock = Arc::clone(&self.locks[which as usize]);
        let worked = async {
            let lock = lock.lock_owned().await;
            let worked = tokio::task::spawn_blocking(move || {
                let _lock = lock;
                work()
            });
            worked.await
        };
        match timeout(TIMEOUT, worked).await {
            Ok(Ok(worked)) => worked.map_err(|error| status(&error)),
            Ok(Err(_)) => Err(Status::internal("the agent failed to access the pool")),
            Err(_) => Err(Status::unavailable(
                "timed out: the guest's disk did not answer",
            )),
        }
    }

    /// Publishes the state of a pool, and notifies the watches if it is new.
    fn publish(&self, which: WirePool, pool: Pool) -> Arc<Pool> {
        let mut now = Arc::new(pool);
        self.seen.send_if_modified(|seen| {
            let known = &mut seen[which as usize];
            if *known == now {
                now = Arc::clone(known);
                return false;
            }
            *known = Arc::clone(&now);
            true
        });
        now
    }
}

fn status(error: &FileError) -> Status {
    let text = error.to_string();
    match error {
        FileError::Change(ChangeError::Pair(_)) => Status::invalid_argument(text),
        FileError::Change(ChangeError::Full) => Status::resource_exhausted(text),
        FileError::Change(ChangeError::Overlong) | FileError::Io { .. } => {
            Status::failed_precondition(text)
        }
    }
}

/// A pair as it is sent.
pub(super) fn pair((key, value): (&str, &str)) -> Pair {
    Pair {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}
