//! The state of the active freeze, which the service, and the task that follows the freezer, share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use hvsock_sys::sync::lock;
use tokio::process::ChildStdin;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::Status;

use crate::wire::freeze::{FreezeReply, ThawReply};

/// How long to wait for operations that should be immediate.
pub(super) const GRACE: Duration = Duration::from_secs(20);

/// Set while filesystems are frozen or about to be. Then the agent must not write to a filesystem.
#[derive(Clone, Debug, Default)]
pub struct FreezeFlag(Arc<AtomicBool>);

impl FreezeFlag {
    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(in crate::guest) fn set(&self, frozen: bool) {
        self.0.store(frozen, Ordering::Release);
    }
}

/// The stage of a freeze.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    Freezing,
    Frozen(FreezeReply),
    /// Nothing is frozen any more.
    Thawed(ThawReply),
    /// The freeze failed, and nothing is frozen.
    Failed(Status),
}

/// A freeze, from its start until its last hook has run.
pub(super) struct FreezeRun {
    pub id: u64,
    /// Dropping it, or writing a byte to it, ends the freeze.
    pub stdin: Option<ChildStdin>,
    pub stage: watch::Receiver<Stage>,
}

/// The active freeze, of which there is at most one, and the result of the last one.
pub(super) struct FreezeManager {
    pub frozen: FreezeFlag,
    slot: Mutex<Slot>,
}

#[derive(Default)]
pub(super) struct Slot {
    pub run: Option<FreezeRun>,
    pub last: Option<(u64, ThawReply)>,
}

impl FreezeManager {
    pub(super) fn new(frozen: FreezeFlag) -> Self {
        Self {
            frozen,
            slot: Mutex::default(),
        }
    }

    pub(super) fn slot(&self) -> MutexGuard<'_, Slot> {
        lock(&self.slot)
    }

    /// Records that nothing is frozen any more, with the result.
    pub(super) fn thawed(&self, id: u64, reply: &ThawReply) {
        self.frozen.set(false);
        self.slot().last = Some((id, reply.clone()));
    }

    /// Waits a while for the thaw hooks of a freeze that is otherwise complete.
    pub(super) async fn finished(&self) {
        let last = self.slot().run.as_ref().map(|run| run.stage.clone());
        let Some(mut stage) = last else {
            return;
        };
        let thawed = matches!(*stage.borrow(), Stage::Thawed(_) | Stage::Failed(_));
        if thawed {
            let gone = async { while stage.changed().await.is_ok() {} };
            let _ = timeout(GRACE, gone).await;
        }
    }

    /// Clears the active freeze, so that the next one can start.
    pub(super) fn over(&self) {
        self.frozen.set(false);
        self.slot().run = None;
    }
}

/// A freeze whose id the host has not received yet: dropping this ends it.
pub(super) struct UnreportedFreeze(pub Option<(Arc<FreezeManager>, u64)>);

impl Drop for UnreportedFreeze {
    fn drop(&mut self) {
        if let Some((manager, id)) = self.0.take() {
            let mut slot = manager.slot();
            let run = slot.run.as_mut().filter(|run| run.id == id);
            drop(run.and_then(|run| run.stdin.take()));
        }
    }
}
