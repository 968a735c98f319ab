//! The suite that every transport must pass, whatever carries its bytes.
//!
//! A crate with a transport implements [`Stream`] and [`Transport`] for it in a test target of
//! its own with `harness = false`, whose `main` is
//!
//! ```text
//! fn main() -> ExitCode {
//!     if let Some(role) = Role::of_this_process() {
//!         return role.play(&the_other_end_of_the_test());   // only with `pair_with_process`
//!     }
//!     conformance::main(conformance::trials(MyTransport))
//! }
//! ```
//!
//! Every case is one test by name, `TRANSPORT::case`. What a transport cannot do at all it says
//! by leaving a method of [`Transport`] at its default, and the cases that need it are shown as
//! ignored: nothing is left out in silence.
//!
//! What is demanded, in short: bytes arrive in order, or an error does; an end of file comes
//! after all data, and only if the writer ended its stream; nobody who waits waits for ever; no
//! buffer grows without a bound.

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

/// The longest that one read, write, wait or accept may take before the case fails.
pub const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// The longest that one case may take, even if the transport heeds no time limit.
pub const LONGEST_CASE: Duration = Duration::from_secs(60);
/// The most bytes that a transport may take from a writer whose peer does not read.
pub const MOST_BUFFERED: usize = 64 << 20;

/// One end of a connection. Dropping it closes it, with a clean end to what was written.
pub trait Stream: Send + Sync + Sized + 'static {
    /// Reads as `std::io::Read` does: `Ok(0)` is the end that the peer made.
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Writes as `std::io::Write` does, `Ok(n)` having accepted `n` bytes and no more.
    fn write(&self, bytes: &[u8]) -> io::Result<usize>;
    /// Ends the direction of writing; reading goes on.
    fn shutdown_write(&self) -> io::Result<()>;
    /// Bounds each read. The error is `TimedOut` or `WouldBlock`, as with std's sockets.
    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()>;
    /// Bounds each write likewise.
    fn set_write_timeout(&self, timeout: Duration) -> io::Result<()>;
    /// Makes reads and writes fail with `WouldBlock` where they would wait.
    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()>;
    /// Waits until something of what is asked is so: poll(2) in effect. Nothing is ready in the
    /// answer if the time ran out. An end or an error counts as readable.
    fn wait(&self, interest: Ready, timeout: Duration) -> io::Result<Ready>;
}

/// What a stream is ready for, or is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// A read would not wait.
    pub read: bool,
    /// A write would not wait.
    pub write: bool,
}

impl Ready {
    /// Nothing.
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

/// A listener, and the way to it.
pub trait Listener<S>: Send + Sync {
    /// Makes a connection to it; may return before the listener has accepted.
    fn connect(&self) -> io::Result<S>;
    /// Takes the next connection; `TimedOut` or `WouldBlock` if none has come.
    fn accept(&self, timeout: Duration) -> io::Result<S>;
}

/// A connection through a broker in a process of its own.
#[derive(Debug)]
pub struct ThroughBroker<S> {
    /// The end that connected.
    pub connector: S,
    /// The end that accepted.
    pub acceptor: S,
    /// The broker.
    pub broker: Running,
}

/// Makes connections of one kind. Cases run at the same time in threads of one process, or each in a
/// process of its own.
///
/// The methods that return an `Option` of a function are what a transport need not be able to do.
pub trait Transport: Send + Sync + 'static {
    /// One end of a connection.
    type Stream: Stream;

    /// What its cases are called after; no spaces.
    fn name(&self) -> &'static str;

    /// A new connection: the end that connected and the end that accepted.
    fn pair(&self) -> io::Result<(Self::Stream, Self::Stream)>;

    /// Whether the end of a peer that died differs from an end that the peer made. Without it a
    /// reader takes half a message for a whole one when the writer is killed.
    fn tells_death_from_end(&self) -> bool {
        true
    }

    /// How many connections it is to carry at once.
    fn many(&self) -> usize {
        500
    }

    /// A new connection with the smallest buffers that can be had.
    fn small_pair(&self) -> Option<MakePair<Self>> {
        None
    }

    /// Ends a stream at once and by force: the peer is to see `ConnectionReset`.
    fn reset(&self) -> Option<Reset<Self>> {
        None
    }

    /// A new listener that lets this many connections wait, and refuses more.
    fn listen(&self) -> Option<Listen<Self>> {
        None
    }

    /// A connection whose other end is held by a new process that plays this role; see
    /// [`Role::command`].
    fn pair_with_process(&self) -> Option<PairWithProcess<Self>> {
        None
    }

    /// A connection through a broker that may be killed.
    fn pair_through_broker(&self) -> Option<PairThroughBroker<Self>> {
        None
    }
}

/// Makes a connection: see [`Transport::small_pair`].
pub type MakePair<T> = fn(&T) -> io::Result<(<T as Transport>::Stream, <T as Transport>::Stream)>;
/// Resets a stream: see [`Transport::reset`].
pub type Reset<T> = fn(&T, <T as Transport>::Stream) -> io::Result<()>;
/// Makes a listener with this backlog: see [`Transport::listen`].
pub type Listen<T> = fn(&T, u32) -> io::Result<Box<dyn Listener<<T as Transport>::Stream>>>;
/// See [`Transport::pair_with_process`].
pub type PairWithProcess<T> = fn(&T, Role) -> io::Result<(<T as Transport>::Stream, Running)>;
/// See [`Transport::pair_through_broker`].
pub type PairThroughBroker<T> = fn(&T) -> io::Result<ThroughBroker<<T as Transport>::Stream>>;

/// One case: its name, whether this transport can do what it needs, and what it does. It fails by
/// a panic.
struct Case<T> {
    name: &'static str,
    possible: fn(&T) -> bool,
    body: fn(&T),
}

impl<T: Transport> Case<T> {
    /// A case for every transport.
    fn new(name: &'static str, body: fn(&T)) -> Self {
        Self::needs(name, |_| true, body)
    }

    /// A case for transports that can do something.
    fn needs(name: &'static str, possible: fn(&T) -> bool, body: fn(&T)) -> Self {
        Self {
            name,
            possible,
            body,
        }
    }
}

/// All cases for a transport, as tests.
pub fn trials<T: Transport>(transport: T) -> Vec<Trial> {
    let transport = Arc::new(transport);
    cases::<T>()
        .map(|case: Case<T>| {
            let name = format!("{}::{}", transport.name(), case.name);
            let possible = (case.possible)(&transport);
            let transport = Arc::clone(&transport);
            let body = move || bounded(transport, case.body).map_err(Failed::from);
            Trial::test(name, body).with_ignored_flag(!possible)
        })
        .collect()
}

/// Runs the one case of this name; the error says how the transport fails it.
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

/// Runs tests as the command line of `cargo test` or `cargo nextest` asks, from `main`.
pub fn main(trials: Vec<Trial>) -> ExitCode {
    os::raise_descriptor_limit();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Runs a case in a thread of its own, which is left behind if it takes too long.
fn bounded<T: Transport>(transport: Arc<T>, body: fn(&T)) -> Result<(), String> {
    let (ended, end) = mpsc::channel();
    let case = thread::spawn(move || {
        body(&transport);
        // Nobody listens any more if it took too long.
        let _ = ended.send(());
    });
    if end.recv_timeout(LONGEST_CASE) == Err(mpsc::RecvTimeoutError::Timeout) {
        return Err(format!("it hangs: no end after {LONGEST_CASE:?}"));
    }
    case.join().map_err(|payload| {
        let message = payload.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| payload.downcast_ref::<&str>().copied());
        message.unwrap_or("it panicked").to_owned()
    })
}
