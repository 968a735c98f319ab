//! The pools as the service has them: read and changed without holding up the agent, and shown to
//! those who watch.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use tonic::Status;

use super::facts;
use super::files::{FileError, Files};
use super::pool::{ChangeError, Pool};
use crate::guest::freeze::Still;
use crate::wire::kvp::Pool as Which;

/// How long a call waits for the disk and for the calls before it.
const PATIENCE: Duration = Duration::from_secs(5);

/// All four pools as they were last seen, by number.
pub(super) type Seen = [Arc<Pool>; 4];

/// All four pools.
pub(super) struct Store {
    /// The folder of the files; none: where programs look for them. That is looked for each time:
    /// an agent starts long before everything is mounted.
    folder: Option<PathBuf>,
    still: Still,
    /// One turn for each pool. Whoever has it keeps it until the disk answers, even if the call
    /// has long been given up: so no more than one thread for each pool ever waits for a disk.
    turns: [Arc<Mutex<()>>; 4],
    seen: watch::Sender<Seen>,
}

impl Store {
    pub(super) fn new(folder: Option<PathBuf>, still: Still) -> Self {
        Self {
            folder,
            still,
            turns: Default::default(),
            seen: watch::Sender::new(Default::default()),
        }
    }

    /// What was last seen, and what is seen from now on.
    pub(super) fn watch(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// One pool as it is now.
    pub(super) async fn read(&self, which: Which) -> Result<Arc<Pool>, Status> {
        let folder = self.folder.clone();
        let read = move || match which {
            Which::Auto => Ok(facts::gather()),
            which => Files::at(folder).read(which),
        };
        let pool = self.in_turn(which, read).await?;
        Ok(self.saw(which, pool))
    }

    /// Changes one pool, or leaves it as it is if `change` fails.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        which: Which,
        change: impl FnOnce(&mut Pool) -> Result<T, ChangeError> + Send + 'static,
    ) -> Result<T, Status> {
        if self.still.holds() {
            return Err(Status::unavailable("the guest's filesystems are frozen"));
        }
        let folder = self.folder.clone();
        let (done, pool) = self
            .in_turn(which, move || Files::at(folder).change(which, change))
            .await?;
        self.saw(which, pool);
        Ok(done)
    }

    /// Runs what may block, alone for its pool and for a bounded time.
    async fn in_turn<T: Send + 'static>(
        &self,
        which: Which,
        work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, Status> {
        let turn = Arc::clone(&self.turns[which as usize]);
        let worked = async {
            let turn = turn.lock_owned().await;
            let worked = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                work()
            });
            worked.await
        };
        match timeout(PATIENCE, worked).await {
            Ok(Ok(worked)) => worked.map_err(|error| status(&error)),
            Ok(Err(_)) => Err(Status::internal("the agent lost track of the pool")),
            Err(_) => Err(Status::unavailable("the guest's disk does not answer")),
        }
    }

    /// Keeps what was seen, and tells whoever watches if it is new.
    fn saw(&self, which: Which, pool: Pool) -> Arc<Pool> {
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
