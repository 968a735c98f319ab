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
mod control;
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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};

use hvsock_fabric::{ConnectionEnd, ConnectionId, PartitionKey, Refusal};
use hvsock_ring::Monitor;
use mio::Waker;

pub(crate) use connection::Connection;
pub(crate) use control::{ControlConnection, peer_died, protocol_violation, unread_data};
pub(crate) use relay::RelayEnd;
pub(crate) use set::ConnectionSet;

use crate::vm::VmEvent;

/// The byte counters of a connection, one per direction. The core can read them at any time.
///
/// On a relayed connection they count bytes that the sink's socket has accepted. On a ring they are
/// the count that each end has published. A hostile end can publish any value, so the counters are
/// made monotonic.
#[derive(Debug, Default)]
pub(crate) struct ByteCounters {
    counted: [AtomicU64; 2],
    ring: Option<Arc<Monitor>>,
}

impl ByteCounters {
    /// The counters of a ring connection.
    pub(crate) fn of_ring(monitor: Arc<Monitor>) -> Self {
        Self {
            counted: Default::default(),
            ring: Some(monitor),
        }
    }

    /// Bytes from the client to the server.
    pub(crate) fn sent(&self) -> u64 {
        self.read(0, hvsock_ring::RingSide::First)
    }

    /// Bytes from the server to the client.
    pub(crate) fn received(&self) -> u64 {
        self.read(1, hvsock_ring::RingSide::Second)
    }

    fn read(&self, direction: usize, writer: hvsock_ring::RingSide) -> u64 {
        let counted = &self.counted[direction];
        match &self.ring {
            None => counted.load(Ordering::Relaxed),
            Some(monitor) => {
                let published = monitor.written(writer);
                counted
                    .fetch_max(published, Ordering::Relaxed)
                    .max(published)
            }
        }
    }

    /// Counts relayed bytes. `direction` is 0 from the client, 1 from the server.
    pub(crate) fn add(&self, direction: usize, bytes: usize) {
        self.counted[direction & 1].fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

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
    /// An event of a VM's data thread.
    Vm {
        partition: PartitionKey,
        event: VmEvent,
    },
}

/// The sending side of the core's report queue.
#[derive(Clone)]
pub(crate) struct ReportSender {
    pub(crate) queue: Sender<Report>,
    pub(crate) waker: Arc<Waker>,
}

impl ReportSender {
    pub(crate) fn send(&self, report: Report) {
        // Sending fails only after the core thread has ended.
        if self.queue.send(report).is_ok() {
            let _ = self.waker.wake();
        }
    }
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
    pub(crate) fn start(index: usize, reports: ReportSender) -> io::Result<Self> {
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
