//! The connections that stand: those whose bytes the broker moves from end to end ([`pumped`]),
//! and those whose ends share memory, at which it only looks on ([`ring`]).
//!
//! A [`ConnectionSet`] is a number of [`Connection`]s on one epoll descriptor. A connection begins
//! in the core's own set, so that one that is short or quiet costs no change of threads; one with
//! whose bytes the broker is busy moves to the set of a [`DataThread`], and one that needs no
//! broker for them stays. Whoever has a set owns its connections outright, so nothing is locked
//! where data flows. The core steers those of a data thread with commands; what it must know comes
//! back as a [`Report`]. A set never blocks, gives every ready connection a turn of bounded length,
//! and says nothing to any log: its words go through the core.

mod connection;
mod control;
mod pumped;
#[cfg(test)]
mod random_tests;
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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};

use hvsock_fabric::{ConnectionId, End, PartitionKey, Refusal};
use hvsock_ring::Monitor;
use mio::Waker;

pub(crate) use connection::Connection;
pub(crate) use control::{Control, protocol_fault, unread_data, went_away};
pub(crate) use pumped::Side;
pub(crate) use set::ConnectionSet;

use crate::vm::VmNews;

/// The bytes of a connection, each way; read by the core at any time.
///
/// Where the broker moves them, they are those that the sink's descriptor has taken. Where the
/// ends do, they are those that each end says it has written: it can say what it likes, but not
/// take anything back.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    seen: [AtomicU64; 2],
    ring: Option<Arc<Monitor>>,
}

impl Counters {
    /// Those of a connection whose ends move its bytes.
    pub(crate) fn of_ring(monitor: Arc<Monitor>) -> Self {
        Self {
            seen: Default::default(),
            ring: Some(monitor),
        }
    }

    /// Bytes from the connecting end to the accepting one.
    pub(crate) fn sent(&self) -> u64 {
        self.look(0, hvsock_ring::Side::First)
    }

    /// Bytes from the accepting end to the connecting one.
    pub(crate) fn received(&self) -> u64 {
        self.look(1, hvsock_ring::Side::Second)
    }

    fn look(&self, direction: usize, writer: hvsock_ring::Side) -> u64 {
        let seen = &self.seen[direction];
        match &self.ring {
            None => seen.load(Ordering::Relaxed),
            Some(monitor) => {
                let says = monitor.written(writer);
                seen.fetch_max(says, Ordering::Relaxed).max(says)
            }
        }
    }

    /// Counts bytes that the broker has moved: 0 from the connecting end, 1 from the other.
    pub(crate) fn add(&self, direction: usize, bytes: usize) {
        self.seen[direction & 1].fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// What a data thread tells the core.
#[derive(Debug)]
pub(crate) enum Report {
    /// A process set `HVSOCKET_CONNECTED_SUSPEND`.
    ConnectedSuspend {
        connection: ConnectionId,
        end: End,
        value: bool,
    },
    /// A connection is over, with the reason if it was not a clean end.
    Closed {
        connection: ConnectionId,
        reason: Option<Refusal>,
    },
    /// A connection moves so much that it should have a thread for it.
    Busy { connection: ConnectionId },
    /// What happened with a VM.
    Vm {
        partition: PartitionKey,
        news: VmNews,
    },
}

/// Where reports go.
#[derive(Clone)]
pub(crate) struct Reports {
    pub(crate) queue: Sender<Report>,
    pub(crate) waker: Arc<Waker>,
}

impl Reports {
    pub(crate) fn send(&self, report: Report) {
        // A core that is gone has no use for reports.
        if self.queue.send(report).is_ok() {
            let _ = self.waker.wake();
        }
    }
}

/// A connection on its way to a set.
pub(crate) struct Adopted {
    pub(crate) id: ConnectionId,
    pub(crate) connection: Connection,
    pub(crate) counters: Arc<Counters>,
}

enum Command {
    Adopt(Box<Adopted>),
    Cut {
        connection: ConnectionId,
        refusal: Refusal,
    },
    Suspend {
        connection: ConnectionId,
        suspended: bool,
    },
    Stop,
}

/// A data thread, as the core holds it. Dropping it ends the thread and its connections.
pub(crate) struct DataThread {
    commands: Sender<Command>,
    waker: Waker,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl DataThread {
    /// Starts a thread that reports to `reports`.
    pub(crate) fn start(index: usize, reports: Reports) -> io::Result<Self> {
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

    /// Hands a connection over.
    pub(crate) fn adopt(&self, adopted: Adopted) {
        self.command(Command::Adopt(Box::new(adopted)));
    }

    /// Ends a connection and tells both ends why; answered by [`Report::Closed`].
    pub(crate) fn cut(&self, connection: ConnectionId, refusal: Refusal) {
        self.command(Command::Cut {
            connection,
            refusal,
        });
    }

    /// Stops a connection's data, or lets it flow again.
    pub(crate) fn suspend(&self, connection: ConnectionId, suspended: bool) {
        self.command(Command::Suspend {
            connection,
            suspended,
        });
    }

    fn command(&self, command: Command) {
        // The thread ends only on `Stop`, so a closed queue is a thread that panicked: its
        // connections are closed by then and nothing is left to command.
        if self.commands.send(command).is_ok() {
            let _ = self.waker.wake();
        }
    }
}

impl Drop for DataThread {
    fn drop(&mut self) {
        self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
