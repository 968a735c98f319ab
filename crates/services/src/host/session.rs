//! Runs commands and shells in a guest.
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
//!         Event::Stderr(_) | Event::StdinClosed | Event::HungUp(_) => {}
//!     }
//! };
//! println!("exit status {}", exit.code());
//! # Ok(())
//! # }
//! ```

use std::ffi::OsString;
use std::mem;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use super::requester::Requester;
use crate::catalog::SESSION;
use crate::link::{CallError, Target};
use crate::text::shell_word;
use crate::wire::session::exited::How;
use crate::wire::session::input::What as In;
use crate::wire::session::output::What as Out;
use crate::wire::session::session_client::SessionClient;
use crate::wire::session::{self as wire, Nothing, Output as Message};

pub use crate::protocol::session::{CHUNK, WINDOW};
pub use crate::wire::session::Reason;

/// The largest message from the guest, in bytes: a chunk and its framing.
const MESSAGE: usize = CHUNK + 1024;

/// How long a guest may take to start a command.
const START: Duration = Duration::from_secs(60);

/// A command to run.
#[derive(Clone, Debug, Default)]
pub struct Exec {
    /// The program and its arguments; empty for the user's shell, as a login shell.
    pub argv: Vec<OsString>,
    /// Variables to add to its environment.
    pub env: Vec<(OsString, OsString)>,
    /// The working directory; `None` for the user's home.
    pub dir: Option<PathBuf>,
    /// The user, by name or number; `None` for the agent's user.
    pub user: Option<String>,
    /// A terminal for the standard streams.
    pub terminal: Option<Terminal>,
    /// Whether input will be sent. Without it, and without a terminal, standard input is empty.
    pub stdin: bool,
}

/// A terminal for a command.
#[derive(Clone, Debug)]
pub struct Terminal {
    /// The value of the variable TERM.
    pub term: String,
    /// The size.
    pub size: Size,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// The number of lines.
    pub rows: u16,
    /// The number of columns.
    pub cols: u16,
}

impl Exec {
    /// A command without input or terminal.
    pub fn new(argv: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// What it does, for the audit: the words of the command line, quoted as for a shell. Variables are
    /// left out: their values may be secret.
    fn description(&self) -> (&'static str, String) {
        let mut words: Vec<String> = Vec::new();
        if let Some(user) = &self.user {
            words.push(format!("-u {}", shell_word(user.as_ref())));
        }
        if let Some(dir) = &self.dir {
            words.push(format!("-w {}", shell_word(dir.as_os_str())));
        }
        words.extend(self.argv.iter().map(|word| shell_word(word)));
        let action = match self.argv.is_empty() {
            true => "shell",
            false => "exec",
        };
        (action, words.join(" "))
    }

    fn into_wire(self, requester: wire::Requester) -> wire::Start {
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
            requester: Some(requester),
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

/// A running command in the guest. When `input` and `output` are both dropped, the guest ends the
/// command with all processes of its session.
#[derive(Debug)]
pub struct Running {
    /// The process id in the guest.
    pub pid: u32,
    /// The id of its connection in the broker's list.
    pub connection: u64,
    /// Sends input and signals to the command.
    pub input: Input,
    /// Receives the output of the command and its exit.
    pub output: Output,
}

/// Why a command did not start, or why its outcome is unknown.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The guest cannot be reached, refused the call, or the connection broke.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The guest could not start the command.
    #[error("{what}")]
    Failed {
        /// The kind of failure.
        reason: Reason,
        /// The guest's error text.
        what: String,
    },
    /// The guest did not answer in time.
    #[error("timed out: the guest did not start the command within {} s", START.as_secs())]
    TimedOut,
    /// Protocol violation by the guest.
    #[error("the guest violates the session protocol: {0}")]
    Broken(&'static str),
}

impl From<Status> for ExecError {
    fn from(status: Status) -> Self {
        Self::Call(status.into())
    }
}

/// Starts a command. Returns when it runs.
///
/// # Errors
///
/// [`ExecError`] if the guest cannot be reached, cannot start the command, or does not answer
/// within 60 seconds.
pub async fn start(target: &Target, exec: Exec) -> Result<Running, ExecError> {
    let (action, detail) = exec.description();
    let target = target.describe(action, detail);
    let (channel, connection) = target.channel_with_id(&SESSION).await?;
    timeout(START, begin(channel, connection, exec))
        .await
        .unwrap_or(Err(ExecError::TimedOut))
}

async fn begin(
    channel: tonic::transport::Channel,
    connection: u64,
    exec: Exec,
) -> Result<Running, ExecError> {
    let has_input = exec.stdin || exec.terminal.is_some();
    let (send, mut inputs) = mpsc::channel(4);
    let start = wire::Input {
        what: Some(In::Start(exec.into_wire(Requester::of(connection).into()))),
    };
    // The channel is empty, so this cannot fail.
    let _ = send.try_send(start);
    // A source of input that is gone without an end has failed.
    let mut incomplete = has_input;
    let inputs = stream::poll_fn(move |context| {
        let input = ready!(inputs.poll_recv(context));
        if let Some(In::StdinEnd(_) | In::HangUp(_)) =
            input.as_ref().and_then(|it| it.what.as_ref())
        {
            incomplete = false;
        }
        Poll::Ready(input.or_else(|| {
            let what = Some(In::HangUp(Nothing {}));
            mem::take(&mut incomplete).then_some(wire::Input { what })
        }))
    });
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
            connection,
            input: Input { send, window },
            output,
        }),
        Out::Failed(failed) => Err(ExecError::Failed {
            reason: failed.reason(),
            what: failed.what,
        }),
        _ => Err(ExecError::Broken("a message before the start")),
    }
}

/// Sends input, signals and terminal sizes to a command.
///
/// If the last clone is dropped before [`end`](Self::end), the source of the input has failed, and the
/// guest ends the command as after [`hang_up`](Self::hang_up): the command must not take what it has
/// received for the whole.
#[derive(Clone, Debug)]
pub struct Input {
    send: mpsc::Sender<wire::Input>,
    window: Arc<Window>,
}

/// The command accepts no more input: it has exited or closed its standard input, or the connection
/// is gone. [`Output::next`] returns the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the command accepts no more input")]
pub struct Closed;

impl Input {
    /// Sends bytes to the command's standard input, and waits for free space in the window. The
    /// window only opens while another task keeps calling [`Output::next`].
    ///
    /// # Errors
    ///
    /// [`Closed`] if the command accepts no more input.
    #[doc(alias = "backpressure")]
    pub async fn send(&self, mut bytes: Bytes) -> Result<(), Closed> {
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(CHUNK));
            let count = u32::try_from(chunk.len()).map_err(|_| Closed)?;
            self.window.reserve(count).await?;
            self.send_message(In::Stdin(chunk)).await?;
        }
        Ok(())
    }

    /// Closes the command's standard input.
    ///
    /// # Errors
    ///
    /// [`Closed`] if the command accepts no more input.
    #[doc(alias = "half-close")]
    pub async fn end(&self) -> Result<(), Closed> {
        self.send_message(In::StdinEnd(Nothing {})).await
    }

    /// Changes the size of the command's terminal.
    ///
    /// # Errors
    ///
    /// [`Closed`] if the command has ended or the connection is gone.
    pub async fn resize(&self, size: Size) -> Result<(), Closed> {
        self.send_message(In::Resize(size.into())).await
    }

    /// Sends a signal to the command, by its number on Linux. Queued input does not delay it.
    ///
    /// # Errors
    ///
    /// [`Closed`] if the command has ended or the connection is gone.
    pub async fn signal(&self, number: u8) -> Result<(), Closed> {
        self.send_message(In::Signal(number.into())).await
    }

    /// Ends the command with all of its processes: `SIGHUP`, and `SIGKILL` two seconds later. Its standard
    /// input does not end before that. [`Event::HungUp`] reports the outcome; a guest with an agent of a
    /// release before this message ignores it, so bound the wait and then drop the [`Running`].
    ///
    /// # Errors
    ///
    /// [`Closed`] if the command has ended or the connection is gone.
    pub async fn hang_up(&self) -> Result<(), Closed> {
        self.send_message(In::HangUp(Nothing {})).await
    }

    async fn send_message(&self, what: In) -> Result<(), Closed> {
        let input = wire::Input { what: Some(what) };
        self.send.send(input).await.map_err(|_| Closed)
    }
}

/// Receives the output of a command.
#[derive(Debug)]
pub struct Output {
    messages: Streaming<Message>,
    window: Arc<Window>,
}

/// An event of a running command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes of standard output, or of the terminal.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// The command has closed its standard input.
    StdinClosed,
    /// The command has exited. This is the last event.
    Exited(Exit),
    /// The command was ended, as [`Input::hang_up`] asked. This is the last event.
    HungUp(HungUp),
}

/// How [`Input::hang_up`] ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HungUp {
    /// The process ids, in the guest, of processes of the command that were not seen to end.
    pub left: Vec<u32>,
    /// The guest cannot say whether others are left.
    pub unknown: bool,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Exit status or signal.
    pub how: Ending,
    /// A process that the command left running still has its output open; that output is not received.
    pub output_left_open: bool,
}

/// Exit status or signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The command exited with this status.
    Status(u8),
    /// The command was killed by the signal with this number.
    Signal(u8),
}

impl Exit {
    /// The exit code as a shell reports it: the exit status, or 128 plus the signal's number.
    pub fn code(&self) -> u8 {
        match self.how {
            Ending::Status(status) => status,
            Ending::Signal(signal) => signal.saturating_add(128),
        }
    }
}

impl Output {
    /// Waits for the next event. Cancel safe: cancelling the wait loses nothing.
    ///
    /// # Errors
    ///
    /// [`ExecError`] if the connection breaks or the guest violates the protocol.
    pub async fn next(&mut self) -> Result<Event, ExecError> {
        loop {
            return Ok(match self.message().await? {
                Out::Stdout(bytes) => Event::Stdout(bytes),
                Out::Stderr(bytes) => Event::Stderr(bytes),
                Out::StdinTaken(count) => {
                    self.window.release(count)?;
                    continue;
                }
                Out::StdinClosed(Nothing {}) => {
                    self.window.free.close();
                    Event::StdinClosed
                }
                Out::Exited(exited) => {
                    self.window.free.close();
                    Event::Exited(exit(exited)?)
                }
                Out::HungUp(hung_up) => {
                    self.window.free.close();
                    Event::HungUp(HungUp {
                        left: hung_up.left,
                        unknown: hung_up.unknown,
                    })
                }
                Out::Failed(failed) => {
                    return Err(ExecError::Failed {
                        reason: failed.reason(),
                        what: failed.what,
                    });
                }
                Out::Started(_) => return Err(ExecError::Broken("a second start")),
            });
        }
    }

    async fn message(&mut self) -> Result<Out, ExecError> {
        let message = self.messages.message().await?;
        let ended = ExecError::Broken("the call ended before the command");
        let unknown = ExecError::Broken("an empty message");
        message.ok_or(ended)?.what.ok_or(unknown)
    }
}

/// The flow-control window for input.
#[derive(Debug)]
struct Window {
    free: Semaphore,
    in_flight: AtomicUsize,
}

impl Window {
    fn new() -> Self {
        Self {
            free: Semaphore::new(WINDOW),
            in_flight: AtomicUsize::new(0),
        }
    }

    async fn reserve(&self, count: u32) -> Result<(), Closed> {
        let free = self.free.acquire_many(count).await;
        free.map_err(|_| Closed)?.forget();
        self.in_flight.fetch_add(count as usize, Ordering::Relaxed);
        Ok(())
    }

    /// Returns `count` bytes to the window: at most what is in flight.
    fn release(&self, count: u32) -> Result<(), ExecError> {
        let count = count as usize;
        let less = |in_flight: usize| in_flight.checked_sub(count);
        self.in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .map_err(|_| ExecError::Broken("a window update for more than was sent"))?;
        self.free.add_permits(count);
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
        how: how.ok_or(ExecError::Broken("an invalid exit status"))?,
        output_left_open: exited.output_left_open,
    })
}
