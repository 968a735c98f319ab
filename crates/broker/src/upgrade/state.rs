//! What a broker keeps of its upgrades.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::SyncSender;

use hvsock_sys::event::Event;
use hvsock_sys::sync::lock;

use crate::api::gate::Busy;
use crate::config::{HandoverStage, OnHandover, Successor};
use crate::handover::GivenUp;
use crate::handover::serve::{Figures, Times};

/// The upgrades of one broker.
#[derive(Debug)]
pub(crate) struct Upgrades {
    pub(crate) successor: Option<Successor>,
    observer: Option<OnHandover>,
    /// Who waits for the upgrade that it asked for.
    pub(crate) asked: Mutex<Option<Asked>>,
    /// The process that the broker was handed over to, 0 if it was not.
    left_to: AtomicU32,
    /// Set when the broker was handed over.
    left: Event,
    /// Its state was stored.
    is_stored: AtomicBool,
}

/// An upgrade that an operator has asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) times: Times,
    /// The connection of the control API on which it was asked for.
    pub(crate) busy: Option<Busy>,
    pub(crate) result: SyncSender<Result<Figures, GivenUp>>,
    /// The process that was started.
    pub(crate) pid: Option<u32>,
}

impl Upgrades {
    pub(crate) fn new(
        successor: Option<Successor>,
        observer: Option<OnHandover>,
    ) -> io::Result<Self> {
        Ok(Self {
            successor,
            observer,
            asked: Mutex::default(),
            left_to: AtomicU32::new(0),
            left: Event::new()?,
            is_stored: AtomicBool::new(false),
        })
    }

    /// The process that the broker was handed over to.
    pub(crate) fn left_to(&self) -> Option<u32> {
        let pid = self.left_to.load(Ordering::SeqCst);
        (pid != 0).then_some(pid)
    }

    /// Set when the broker was handed over.
    pub(crate) fn left(&self) -> &Event {
        &self.left
    }

    /// Tells how far a handover is.
    pub(super) fn tell(&self, stage: HandoverStage) {
        if let Some(OnHandover(tell)) = &self.observer {
            tell(stage);
        }
    }

    /// Records that the broker was handed over.
    pub(super) fn set_left_to(&self, pid: u32) {
        self.left_to.store(pid, Ordering::SeqCst);
    }

    /// Records that the broker's state was stored for a process that is not there yet.
    pub(crate) fn set_stored(&self) {
        self.is_stored.store(true, Ordering::SeqCst);
    }

    /// Whether another process has, or will have, all that the broker has.
    pub(crate) fn has_left(&self) -> bool {
        self.left_to().is_some() || self.is_stored.load(Ordering::SeqCst)
    }

    /// The times for a successor, and the connection of the control API that waits for it.
    pub(super) fn times(&self, pid: Option<u32>) -> (Times, Option<Busy>) {
        match &*lock(&self.asked) {
            Some(asked) if asked.pid == pid => (asked.times, asked.busy.clone()),
            _ => (Times::default(), None),
        }
    }

    pub(super) fn report(&self, pid: Option<u32>, result: Result<Figures, GivenUp>) {
        if let Some(asked) = &*lock(&self.asked)
            && asked.pid == pid
        {
            // There is room for one, and there is one.
            let _ = asked.result.try_send(result);
        }
    }
}
