//! Signals that this command gets in place of the one in the guest.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// All that are caught.
pub(super) struct Signals {
    ending: [(u8, Signal); 4],
    others: [(u8, Signal); 2],
    resized: Signal,
}

/// One that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caught {
    /// One that ends programs, by its number.
    Ending(u8),
    /// Another one for programs.
    Other(u8),
    /// The terminal has another size.
    Resized,
}

impl Signals {
    /// From now on they are caught.
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

    /// Waits for the next one. Cancelling the wait loses none.
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
