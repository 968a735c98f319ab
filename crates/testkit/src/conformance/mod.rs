//! The conformance suite that every transport must pass.
//!
//! A crate with a transport implements [`Stream`] and [`Transport`] in a separate test target with
//! `harness = false`. Its `main` is
//!
//! ```text
//! fn main() -> ExitCode {
//!     if let Some(role) = Role::of_this_process() {
//!         return role.run(&the_other_end_of_the_test());   // only with `pair_with_process`
//!     }
//!     conformance::main(conformance::trials(MyTransport))
//! }
//! ```
//!
//! Every case is one test named `TRANSPORT::case`. A transport that lacks a capability leaves the
//! method of [`Transport`] at its default. The cases that need it are then reported as ignored, so
//! no case is skipped silently.
//!
//! The requirements, in short:
//! - bytes arrive in order, or the reader gets an error;
//! - end of file comes after all data, and only if the writer shut down or closed its stream;
//! - every wait ends: a lost wakeup is a failure;
//! - buffers are bounded: backpressure reaches the writer.

mod accepting;
mod closing;
mod exchange;
mod faults;
mod pattern;
mod util;
mod waiting;

use std::io;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed};

pub use faults::Role;
pub use libtest_mimic::Trial;

use crate::os;
use crate::process::Running;

/// Timeout of one read, write, wait or accept; the case fails after it.
pub const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Timeout of one case, for transports that ignore their own timeouts.
pub const LONGEST_CASE: Duration = Duration::from_secs(180);
/// The most bytes that a transport may accept while the peer does not read.
pub const MOST_BUFFERED: usize = 64 << 20;

/// One end of a connection. Dropping it closes it: the peer reads all written data, then end of file.
pub trait Stream: Send + Sync + Sized + 'static {
    /// Reads like `std::io::Read`. `Ok(0)` is end of file.
    ///
    /// # Errors
    /// `TimedOut` or `WouldBlock`, `ConnectionReset` if the peer died or reset the stream, or another error.
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes like `std::io::Write`. `Ok(n)` means that exactly `n` bytes were accepted.
    ///
    /// # Errors
    /// `BrokenPipe` after a shutdown, `TimedOut` or `WouldBlock`, or an error that reports a dead peer.
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;
    /// Shuts down writing (half-close). Reading still works.
    ///
    /// # Errors
    /// If the stream is closed.
    #[doc(alias = "half-close")]
    fn shutdown_write(&self) -> io::Result<()>;
    /// Sets the timeout of each read. A read that times out fails with `TimedOut` or `WouldBlock`, as
    /// with std's sockets.
    ///
    /// # Errors
    /// If the transport cannot set it.
    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()>;
    /// Sets the timeout of each write, with the same errors.
    ///
    /// # Errors
    /// If the transport cannot set it.
    fn set_write_timeout(&self, timeout: Duration) -> io::Result<()>;
    /// Makes reads and writes fail with `WouldBlock` instead of waiting.
    ///
    /// # Errors
    /// If the transport cannot set it.
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()>;
    /// Waits, like `poll(2)`, until the stream is ready for something in `interest`. Returns
    /// [`Ready::NONE`] on timeout. End of file and errors count as readable.
    ///
    /// # Errors
    /// If the wait itself fails. A failed stream is readable instead.
    fn wait(&self, interest: Ready, timeout: Duration) -> io::Result<Ready>;
}

/// Readiness of a stream, or interest in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// A read would not block.
    pub read: bool,
    /// A write would not block.
    pub write: bool,
}

impl Ready {
    /// Neither.
    pub const NONE: Ready = Ready {
        read: false,
        write: false,
    };
    /// Reading only.
    pub const READ: Ready = Ready {
        read: true,
        write: false,
    };
    /// Writing only.
    pub const WRITE: Ready = Ready {
        read: false,
        write: true,
    };
    /// Both.
    pub const BOTH: Ready = Ready {
        read: true,
        write: true,
    };
}

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

/// One case. It fails by a panic.
struct Case<T> {
    name: &'static str,
    /// Whether the transport has the capability that the case needs.
    supported: fn(&T) -> bool,
    body: fn(&T),
}

impl<T: Transport> Case<T> {
    /// A case for every transport.
    fn new(name: &'static str, body: fn(&T)) -> Self {
        Self::needs(name, |_| true, body)
    }

    /// A case for transports with a capability.
    fn needs(name: &'static str, supported: fn(&T) -> bool, body: fn(&T)) -> Self {
        Self {
            name,
            supported,
            body,
        }
    }
}

/// Returns all cases for a transport, as tests.
pub fn trials<T: Transport>(transport: T) -> Vec<Trial> {
    let transport = Arc::new(transport);
    cases::<T>()
        .map(|case: Case<T>| {
            let name = format!("{}::{}", transport.name(), case.name);
            let supported = (case.supported)(&transport);
            let transport = Arc::clone(&transport);
            let body = move || bounded(transport, case.body).map_err(Failed::from);
            Trial::test(name, body).with_ignored_flag(!supported)
        })
        .collect()
}

/// Runs one case by name.
///
/// # Errors
/// The message of the failed case, or "there is no case NAME".
pub fn check<T: Transport>(transport: T, name: &str) -> Result<(), String> {
    let case = cases().find(|case: &Case<T>| case.name == name);
    let case = case.ok_or_else(|| format!("there is no case {name}"))?;
    bounded(Arc::new(transport), case.body)
}

fn cases<T: Transport>() -> impl Iterator<Item = Case<T>> {
    [
        exchange::cases(),
        closing::cases(),
        waiting::cases(),
        accepting::cases(),
        faults::cases(),
    ]
    .into_iter()
    .flatten()
}

/// Runs tests by the arguments that `cargo test` or `cargo nextest` passes. For `main`.
pub fn main(trials: Vec<Trial>) -> ExitCode {
    os::raise_descriptor_limit();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Runs a case in a new thread, which is left running if the case times out.
fn bounded<T: Transport>(transport: Arc<T>, body: fn(&T)) -> Result<(), String> {
    let (ended, end) = mpsc::channel();
    let case = thread::spawn(move || {
        body(&transport);
        // The receiver is gone if the case timed out.
        let _ = ended.send(());
    });
    if end.recv_timeout(LONGEST_CASE) == Err(mpsc::RecvTimeoutError::Timeout) {
        return Err(format!("it hangs: still running after {LONGEST_CASE:?}"));
    }
    case.join().map_err(|payload| {
        let message = payload.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| payload.downcast_ref::<&str>().copied());
        message.unwrap_or("it panicked").to_owned()
    })
}
