//! A restart that nobody notices: the state of a broker is stored outside its process, which ends, and another
//! process goes on with it later.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use crate::core::HandOver;
use crate::handover::serve::{Figures, Outcome};
use crate::handover::stored::Storing;
use crate::handover::{GivenUp, StoredState};
use crate::take_over::Successor;
use crate::upgrade::ANSWERS;
use crate::{Broker, BrokerConfig};

/// A broker was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stored {
    /// How many descriptors it has.
    pub descriptors: u32,
    /// The length of its document in bytes.
    pub bytes: u64,
    /// How long that took.
    pub took: Duration,
}

/// A broker goes on with what was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restored {
    /// The release of the one that was stored.
    pub from: String,
    /// For how long it was stored.
    pub stored_for: Duration,
}

/// Why a broker was not stored, or one that was cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RestartError(String);

/// What the core has for the thread that stores it.
enum Progress {
    /// It stands still, and this is its state.
    Frozen(StoredState),
    /// The end.
    Done(Outcome, Figures),
}

impl Broker {
    /// Stops everything between two steps and passes all of the broker's state to `put`, which stores it somewhere
    /// outside this process, in at most `room` descriptors. Then this broker is over: dropping it does nothing, and
    /// its process has to end soon, since it has duplicates of all descriptors.
    ///
    /// Clients that connect afterwards wait for the next broker, in the queues of the sockets.
    ///
    /// # Errors
    ///
    /// [`RestartError`] if `put` fails, or if something of the broker cannot be stored. Then it goes on, but cannot be
    /// upgraded any more. A caller drops it, which resets every connection with a reason.
    pub fn store(
        &mut self,
        room: usize,
        put: impl FnOnce(&StoredState) -> Result<(), String>,
    ) -> Result<Stored, RestartError> {
        let failed = |reason: &str| RestartError(reason.to_owned());
        let parts = self.parts.as_mut();
        let parts = parts.ok_or_else(|| failed("it has ended"))?;
        // A handover that is under way ends first.
        drop(parts.handover.take());
        if self.upgrades.left_to().is_some() {
            return Err(failed("it was handed over to another process"));
        }
        let lock = parts.lock.as_ref();
        let lock = lock.ok_or_else(|| failed("it has no lock of its folders"))?;
        let lock = lock.duplicate();
        let lock = lock.map_err(|error| RestartError(error.to_string()))?;
        let control = parts.control.as_ref();
        let (socket, gate): (Option<Arc<OwnedFd>>, _) = match control {
            Some(control) => (Some(control.socket()), Some(control.gate())),
            None => (None, None),
        };
        if let Some(gate) = &gate {
            gate.close(ANSWERS);
        }
        let (progress, news) = sync_channel(1);
        let (answer, answered) = sync_channel(1);
        let of_put = progress.clone();
        // On the core's thread.
        let ask = move |state| {
            let stopped = |()| "the broker is stopping".to_owned();
            let asked = of_put.send(Progress::Frozen(state)).map_err(drop);
            asked.map_err(stopped)?;
            answered.recv().map_err(drop).map_err(stopped)?
        };
        let hand_over = HandOver {
            to: Box::new(Storing::new(room, ask)),
            control: socket,
            lock,
            done: Box::new(move |outcome, figures| {
                let _ = progress.send(Progress::Done(outcome, figures));
            }),
        };
        let asked = self.handle.hand_over(hand_over);
        asked.map_err(|error| RestartError(error.to_string()))?;
        let mut put = Some(put);
        let end = loop {
            match news.recv() {
                Ok(Progress::Frozen(state)) => {
                    let put = put.take().map(|put| put(&state));
                    let _ = answer.send(put.unwrap_or(Ok(())));
                }
                Ok(Progress::Done(outcome, figures)) => break Ok((outcome, figures)),
                Err(_) => break Err(failed("the broker is stopping")),
            }
        };
        let end = end.and_then(|(outcome, figures)| match outcome {
            Outcome::Left => Ok(figures),
            Outcome::Resumed(GivenUp::Failed(reason)) => Err(RestartError(reason)),
            Outcome::Resumed(GivenUp::DryRun) => Err(failed("it was a dry run")),
        });
        if let Some(gate) = &gate {
            match &end {
                Ok(_) => gate.leave(),
                Err(_) => gate.open(),
            }
        }
        let figures = end?;
        self.upgrades.set_stored();
        Ok(Stored {
            descriptors: figures.descriptors,
            bytes: figures.bytes,
            took: figures.standstill,
        })
    }

    /// Goes on with a broker that was stored, with all that it had.
    ///
    /// # Errors
    ///
    /// [`RestartError`] if the state is damaged, incomplete, of another boot, or of a release that this one does not
    /// know; as [`start`](Self::start). All that was stored is closed then, so that a new broker can start.
    pub fn restore(
        mut config: BrokerConfig,
        state: StoredState,
    ) -> Result<(Self, Restored), RestartError> {
        let soft = hvsock_sys::limits::descriptors();
        config.soft_descriptors.get_or_insert(soft);
        // The state may have more than the limit with which this process was started. The core reports an error.
        let _ = hvsock_sys::limits::raise_descriptors();
        let opened = state.open();
        let opened = opened.map_err(|error| RestartError(error.to_string()))?;
        let (document, imports, stored_for) = opened;
        let from = document.release.clone();
        let broker = Successor::new(config).run(document, imports);
        let broker = broker.map_err(RestartError)?;
        Ok((broker, Restored { from, stored_for }))
    }
}
