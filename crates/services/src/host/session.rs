//! Commands and shells in a guest, for whoever runs it.
//!
//! ```no_run
//! use hvsock_services::host::session::{self, Event, Exec};
//! use hvsock_services::link::Target;
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let web = Target::new(hvsock::Endpoint::from_env(), "web".parse::<hvsock::PartitionRef>()?);
//! let mut running = session::start(&web, Exec::new(["uname", "-r"])).await?;
//! let exit = loop {
//!     match running.output.next().await? {
//!         Event::Stdout(bytes) => println!("{}", String::from_utf8_lossy(&bytes)),
//!         Event::Exited(exit) => break exit,
//!         Event::Stderr(_) | Event::StdinClosed => {}
//!     }
//! };
//! println!("exit status {}", exit.code());
//! # Ok(())
//! # }
//! ```

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::catalog::SESSION;
use crate::link::{CallError, Target};
use crate::wire::session::exited::How;
use crate::wire::session::input::What as In;
use crate::wire::session::output::What as Out;
use crate::wire::session::session_client::SessionClient;
use crate::wire::session::{self as wire, Nothing, Output as Message};

pub use crate::wire::session::Reason;

/// How many bytes may be under way to a command's standard input.
pub const WINDOW: usize = 256 << 10;

/// The most bytes of one piece of input or output.
pub const PIECE: usize = 64 << 10;

/// The most bytes of one message of the guest's: a piece and what is around it.
const MESSAGE: usize = PIECE + 1024;

/// How long a guest may take to start a command.
const START: Duration = Duration::from_secs(60);

/// A command.
#[derive(Clone, Debug, Default)]
pub struct Exec {
    /// The program and its arguments; none for the user's shell, as a login shell.
    pub argv: Vec<OsString>,
    /// Variables for its environment.
    pub env: Vec<(OsString, OsString)>,
    /// Its working directory; the user's home if not said.
    pub dir: Option<PathBuf>,
    /// As whom, by name or number; as the agent's user if not said.
    pub user: Option<String>,
    /// A terminal for its streams.
    pub terminal: Option<Terminal>,
    /// Whether it is sent input; if not, and without a terminal, its input is empty.
    pub stdin: bool,
}

/// A terminal.
#[derive(Clone, Debug)]
pub struct Terminal {
    /// Its kind, for the variable TERM.
    pub term: String,
    /// Its size.
    pub size: Size,
}

/// A terminal's size, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// From top to bottom.
    pub rows: u16,
    /// From left to right.
    pub cols: u16,
}

impl Exec {
    /// A command without input.
    pub fn new(argv: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    fn into_wire(self) -> wire::Start {
        let bytes = |text: OsString| Bytes::from(text.into_vec());
        wire::Start {
            argv: self.argv.into_iter().map(bytes).collect(),
            env: self
                .env
                .into_iter()
                .map(|(name, value)| wire::Variable {
                    name: bytes(name),
                    value: bytes(value),
                })
                .collect(),
            dir: self.dir.map(|dir| bytes(dir.into())).unwrap_or_default(),
            user: self.user.unwrap_or_default(),
            terminal: self.terminal.map(|terminal| wire::Terminal {
                term: terminal.term,
                size: Some(terminal.size.into()),
            }),
            stdin: self.stdin,
        }
    }
}

impl From<Size> for wire::Size {
    fn from(size: Size) -> Self {
        Self {
            rows: size.rows.into(),
            cols: size.cols.into(),
        }
    }
}

/// A command that runs in the guest. Once both halves are dropped, the guest ends it with all that
/// it started.
#[derive(Debug)]
pub struct Running {
    /// Its process id, in the guest.
    pub pid: u32,
    /// What goes there.
    pub input: Input,
    /// What comes from there.
    pub output: Output,
}

/// Why a command did not start, or why its end is not known.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The guest cannot be reached, said no, or the connection broke.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The guest could not start it.
    #[error("{what}")]
    Failed {
        /// What kind of failure it is.
        reason: Reason,
        /// The guest's words.
        what: String,
    },
    /// The guest does not answer.
    #[error("the guest has not started the command within {} seconds", START.as_secs())]
    TimedOut,
    /// The guest breaks the rules of the interface.
    #[error("the guest breaks the rules of the session service: {0}")]
    Broken(&'static str),
}

impl From<Status> for ExecError {
    fn from(status: Status) -> Self {
        Self::Call(status.into())
    }
}

/// Starts a command, and returns once it runs.
pub async fn start(target: &Target, exec: Exec) -> Result<Running, ExecError> {
    let channel = target.channel(&SESSION).await?;
    timeout(START, begin(channel, exec))
        .await
        .unwrap_or(Err(ExecError::TimedOut))
}

async fn begin(channel: tonic::transport::Channel, exec: Exec) -> Result<Running, ExecError> {
    let (send, mut inputs) = mpsc::channel(4);
    let start = wire::Input {
        what: Some(In::Start(exec.into_wire())),
    };
    // There is room for it.
    let _ = send.try_send(start);
    let inputs = stream::poll_fn(move |context| inputs.poll_recv(context));
    let mut client = SessionClient::new(channel).max_decoding_message_size(MESSAGE);
    let messages = client.run(inputs).await?.into_inner();
    let window = Arc::new(Window::new());
    let mut output = Output {
        messages,
        window: Arc::clone(&window),
    };
    match output.message().await? {
        Out::Started(started) => Ok(Running {
            pid: started.pid,
            input: Input { send, window },
            output,
        }),
        Out::Failed(failed) => Err(ExecError::Failed {
            reason: failed.reason(),
            what: failed.what,
        }),
        _ => Err(ExecError::Broken("something came before the start")),
    }
}

/// The way to a command.
#[derive(Clone, Debug)]
pub struct Input {
    send: mpsc::Sender<wire::Input>,
    window: Arc<Window>,
}

/// The command takes no more: it has ended, or closed its input, or the connection is gone, which
/// [`Output::next`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the command takes no more")]
pub struct Closed;

impl Input {
    /// Sends bytes to its standard input, once there is room for them. For that to come about
    /// somebody has to call [`Output::next`] all the time.
    pub async fn send(&self, mut bytes: Bytes) -> Result<(), Closed> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            let count = u32::try_from(piece.len()).map_err(|_| Closed)?;
            self.window.take(count).await?;
            self.say(In::Stdin(piece)).await?;
        }
        Ok(())
    }

    /// Ends its standard input.
    pub async fn end(&self) -> Result<(), Closed> {
        self.say(In::StdinEnd(Nothing {})).await
    }

    /// Gives its terminal another size.
    pub async fn resize(&self, size: Size) -> Result<(), Closed> {
        self.say(In::Resize(size.into())).await
    }

    /// Sends it a signal, by its number on Linux. It is never held up by input that waits.
    pub async fn signal(&self, number: u8) -> Result<(), Closed> {
        self.say(In::Signal(number.into())).await
    }

    async fn say(&self, what: In) -> Result<(), Closed> {
        let input = wire::Input { what: Some(what) };
        self.send.send(input).await.map_err(|_| Closed)
    }
}

/// The way back from a command.
#[derive(Debug)]
pub struct Output {
    messages: Streaming<Message>,
    window: Arc<Window>,
}

/// What comes from a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// What it printed, or its terminal shows.
    Stdout(Bytes),
    /// What it printed there.
    Stderr(Bytes),
    /// It reads no more.
    StdinClosed,
    /// Its end, which is the last.
    Exited(Exit),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// By itself or by a signal.
    pub how: Ending,
    /// A process that it left running had its output open; what that one prints is not here.
    pub output_left_open: bool,
}

/// By itself or by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With this exit status.
    Status(u8),
    /// By the signal with this number.
    Signal(u8),
}

impl Exit {
    /// As a shell has it: the exit status, or 128 and the signal's number.
    pub fn code(&self) -> u8 {
        match self.how {
            Ending::Status(status) => status,
            Ending::Signal(signal) => signal.saturating_add(128),
        }
    }
}

impl Output {
    /// Waits for what comes next. Cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Result<Event, ExecError> {
        loop {
            return Ok(match self.message().await? {
                Out::Stdout(bytes) => Event::Stdout(bytes),
                Out::Stderr(bytes) => Event::Stderr(bytes),
                Out::StdinTaken(count) => {
                    self.window.taken(count)?;
                    continue;
                }
                Out::StdinClosed(Nothing {}) => {
                    self.window.room.close();
                    Event::StdinClosed
                }
                Out::Exited(exited) => {
                    self.window.room.close();
                    Event::Exited(exit(exited)?)
                }
                Out::Failed(failed) => {
                    return Err(ExecError::Failed {
                        reason: failed.reason(),
                        what: failed.what,
                    });
                }
                Out::Started(_) => return Err(ExecError::Broken("it started twice")),
            });
        }
    }

    async fn message(&mut self) -> Result<Out, ExecError> {
        let message = self.messages.message().await?;
        let ended = ExecError::Broken("it ends without the command's end");
        let unknown = ExecError::Broken("a message says nothing");
        message.ok_or(ended)?.what.ok_or(unknown)
    }
}

/// The room for input.
#[derive(Debug)]
struct Window {
    room: Semaphore,
    under_way: AtomicUsize,
}

impl Window {
    fn new() -> Self {
        Self {
            room: Semaphore::new(WINDOW),
            under_way: AtomicUsize::new(0),
        }
    }

    async fn take(&self, count: u32) -> Result<(), Closed> {
        let room = self.room.acquire_many(count).await;
        room.map_err(|_| Closed)?.forget();
        self.under_way.fetch_add(count as usize, Ordering::Relaxed);
        Ok(())
    }

    /// The guest took so many, which cannot be more than there were.
    fn taken(&self, count: u32) -> Result<(), ExecError> {
        let count = count as usize;
        let less = |under_way: usize| under_way.checked_sub(count);
        self.under_way
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .map_err(|_| ExecError::Broken("it took more input than there was"))?;
        self.room.add_permits(count);
        Ok(())
    }
}

fn exit(exited: wire::Exited) -> Result<Exit, ExecError> {
    let how = match exited.how {
        Some(How::Status(status)) => u8::try_from(status).ok().map(Ending::Status),
        Some(How::Signal(signal @ 1..=127)) => u8::try_from(signal).ok().map(Ending::Signal),
        _ => None,
    };
    Ok(Exit {
        how: how.ok_or(ExecError::Broken("the command's end is none"))?,
        output_left_open: exited.output_left_open,
    })
}
