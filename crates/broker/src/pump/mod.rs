//! Established connections between processes: those that the broker relays ([`relay`]), and those
//! whose ends share a ring, which the broker only monitors ([`ring`]).
//!
//! A [`ConnectionSet`] holds [`Connection`]s on one epoll descriptor. A connection starts in the
//! core thread's own set, so that a short or quiet one needs no thread switch. A relayed
//! connection that moves many bytes is promoted to the set of a [`DataThread`]; a ring connection
//! stays. A thread owns the connections of its set, so the data path needs no locks. The core sends
//! commands to data threads and receives [`Report`]s. A set never blocks, gives every ready
//! connection a turn of bounded length (fairness), and never logs: its reports go to the core.

mod connection;
#[cfg(test)]
mod random_tests;
mod relay;
mod ring;
#[cfg(test)]
mod ring_random_tests;
#[cfg(test)]
mod ring_tests;
mod set;
#[cfg(test)]
mod tests;
mod thread;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};

use hvsock_fabric::{ConnectionEnd, ConnectionId, Refusal};
use mio::Waker;

pub(crate) use connection::Connection;
pub(crate) use relay::RelayEnd;
pub(crate) use set::ConnectionSet;

use crate::data_path::{ByteCounters, ReportSender};

/// A report of a connection set or data thread to the core.
#[derive(Debug)]
pub(crate) enum Report {
    /// A process set `HVSOCKET_CONNECTED_SUSPEND`.
    ConnectedSuspend {
        connection: ConnectionId,
        end: ConnectionEnd,
        value: bool,
    },
    /// A connection is closed. The reason is set unless both ends closed cleanly.
    Closed {
        connection: ConnectionId,
        reason: Option<Refusal>,
    },
    /// A connection has moved enough bytes to be promoted to a data thread.
    Busy { connection: ConnectionId },
}

/// A connection that moves to a set.
pub(crate) struct Adopted {
    pub(crate) id: ConnectionId,
    pub(crate) connection: Connection,
    pub(crate) counters: Arc<ByteCounters>,
}

enum ThreadCommand {
    Adopt(Box<Adopted>),
    Reset {
        connection: ConnectionId,
        refusal: Refusal,
    },
    Suspend {
        connection: ConnectionId,
        suspended: bool,
    },
    Stop,
}

/// A handle to a data thread. Dropping it resets the thread's connections and joins it.
pub(crate) struct DataThread {
    commands: Sender<ThreadCommand>,
    waker: Waker,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl DataThread {
    /// Starts a thread that reports to `reports`.
    pub(crate) fn start(index: usize, reports: ReportSender<Report>) -> io::Result<Self> {
        let (commands, queue) = mpsc::channel();
        let poll = mio::Poll::new()?;
        let waker = Waker::new(poll.registry(), thread::WAKE)?;
        let set = ConnectionSet::new(poll.registry().try_clone()?, 0, u64::MAX);
        let thread = std::thread::Builder::new()
            .name(format!("hvsock-data-{index}"))
            .spawn(move || thread::run(poll, set, &queue, &reports))?;
        Ok(Self {
            commands,
            waker,
            thread: Some(thread),
        })
    }

    /// Moves a connection to this thread.
    pub(crate) fn adopt(&self, adopted: Adopted) {
        self.command(ThreadCommand::Adopt(Box::new(adopted)));
    }

    /// Resets a connection and sends both ends the reason. The thread then sends
    /// [`Report::Closed`].
    pub(crate) fn reset(&self, connection: ConnectionId, refusal: Refusal) {
        self.command(ThreadCommand::Reset {
            connection,
            refusal,
        });
    }

    /// Suspends or resumes a connection.
    pub(crate) fn suspend(&self, connection: ConnectionId, suspended: bool) {
        self.command(ThreadCommand::Suspend {
            connection,
            suspended,
        });
    }

    fn command(&self, command: ThreadCommand) {
        // The thread ends only on `Stop`, so sending fails only if it panicked. Its connections are
        // closed by then.
        if self.commands.send(command).is_ok() {
            let _ = self.waker.wake();
        }
    }
}

impl Drop for DataThread {
    fn drop(&mut self) {
        self.command(ThreadCommand::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
