//! A kind of connection: what the suite needs of it, and what it may lack.

use std::io;
use std::time::Duration;

use super::role::Role;
use super::stream::Stream;
use crate::process::Running;

/// A listener, and a way to connect to it.
pub trait Listener<S>: Send + Sync {
    /// Connects to the listener. May return before the listener has accepted.
    ///
    /// # Errors
    /// `ConnectionRefused` if the backlog is full, or any error of the transport.
    fn connect(&self) -> io::Result<S>;
    /// Accepts the next connection.
    ///
    /// # Errors
    /// `TimedOut` or `WouldBlock` if none arrives in time.
    fn accept(&self, timeout: Duration) -> io::Result<S>;
}

/// A connection through a broker that runs in a separate process.
#[derive(Debug)]
pub struct ThroughBroker<S> {
    /// The end that connected.
    pub connector: S,
    /// The end that accepted.
    pub acceptor: S,
    /// The broker's process.
    pub broker: Running,
}

/// Creates connections of one kind. Cases run concurrently, in threads of one process or each in a
/// separate process.
///
/// A method that returns an `Option` of a function is an optional capability.
pub trait Transport: Send + Sync + 'static {
    /// One end of a connection.
    type Stream: Stream;

    /// The prefix of its cases' names, without spaces.
    fn name(&self) -> &'static str;

    /// Creates a connection. Returns the end that connected and the end that accepted.
    ///
    /// # Errors
    /// Any error of the transport; the case then fails.
    fn pair(&self) -> io::Result<(Self::Stream, Self::Stream)>;

    /// Whether a reader can distinguish a killed peer from one that closed its stream. If not, a
    /// reader takes a truncated message for a complete one.
    fn distinguishes_death_from_eof(&self) -> bool {
        true
    }

    /// How many concurrent connections the suite opens.
    fn concurrent_connections(&self) -> usize {
        500
    }

    /// Creates a connection with the smallest buffers that the transport supports.
    fn small_pair(&self) -> Option<MakePair<Self>> {
        None
    }

    /// Resets a stream. The peer must see `ConnectionReset`.
    fn reset(&self) -> Option<Reset<Self>> {
        None
    }

    /// Creates a listener with this backlog, which refuses further connections.
    fn listen(&self) -> Option<Listen<Self>> {
        None
    }

    /// Creates a connection whose peer is a new process in this role; see [`Role::command`].
    fn pair_with_process(&self) -> Option<PairWithProcess<Self>> {
        None
    }

    /// Creates a connection through a broker that the case may kill.
    fn pair_through_broker(&self) -> Option<PairThroughBroker<Self>> {
        None
    }
}

/// Creates a connection: see [`Transport::small_pair`].
pub type MakePair<T> = fn(&T) -> io::Result<(<T as Transport>::Stream, <T as Transport>::Stream)>;
/// Resets a stream: see [`Transport::reset`].
pub type Reset<T> = fn(&T, <T as Transport>::Stream) -> io::Result<()>;
/// Creates a listener with this backlog: see [`Transport::listen`].
pub type Listen<T> = fn(&T, u32) -> io::Result<Box<dyn Listener<<T as Transport>::Stream>>>;
/// See [`Transport::pair_with_process`].
pub type PairWithProcess<T> = fn(&T, Role) -> io::Result<(<T as Transport>::Stream, Running)>;
/// See [`Transport::pair_through_broker`].
pub type PairThroughBroker<T> = fn(&T) -> io::Result<ThroughBroker<<T as Transport>::Stream>>;
