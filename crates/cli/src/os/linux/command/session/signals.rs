//! The signals that this process catches and passes on to the command in the guest.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The handlers of all caught signals.
pub(super) struct Signals {
    ending: [(u8, Signal); 4],
    others: [(u8, Signal); 2],
    resized: Signal,
}

/// A signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caught {
    /// A signal that ends programs, by its number.
    Ending(u8),
    /// Another signal for programs.
    Other(u8),
    /// The terminal changed its size.
    Resized,
}

impl Signals {
    /// Installs the handlers.
    pub(super) fn catch() -> io::Result<Self> {
        let caught = |kind: SignalKind| {
            let number = u8::try_from(kind.as_raw_value()).map_err(io::Error::other)?;
            io::Result::Ok((number, signal(kind)?))
        };
        Ok(Self {
            ending: [
                caught(SignalKind::hangup())?,
                caught(SignalKind::interrupt())?,
                caught(SignalKind::quit())?,
                caught(SignalKind::terminate())?,
            ],
            others: [
                caught(SignalKind::user_defined1())?,
                caught(SignalKind::user_defined2())?,
            ],
            resized: signal(SignalKind::window_change())?,
        })
    }

    /// Waits for the next signal. Cancel safe: no signal is lost.
    pub(super) async fn next(&mut self) -> Caught {
        let [hangup, interrupt, quit, terminate] = &mut self.ending;
        let [first, second] = &mut self.others;
        tokio::select! {
            _ = hangup.1.recv() => Caught::Ending(hangup.0),
            _ = interrupt.1.recv() => Caught::Ending(interrupt.0),
            _ = quit.1.recv() => Caught::Ending(quit.0),
            _ = terminate.1.recv() => Caught::Ending(terminate.0),
            _ = first.1.recv() => Caught::Other(first.0),
            _ = second.1.recv() => Caught::Other(second.0),
            _ = self.resized.recv() => Caught::Resized,
        }
    }
}
