//! One command, from its first message to its last.
//!
//! Backpressure: the command's output waits in its pipe until the parent reads, and the parent's
//! input waits at the parent once the window is full. The parent's messages are always read, so a
//! signal is never stuck behind unread bytes.

use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::pipe::fcntl_getpipe_size;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::termios::{tcgetpgrp, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Status, Streaming};

use super::plan::{self, Plan};
use super::process::{self, InputCloser, Process, Streams};
use super::record::CommandRecord;
use super::stdin::{Overrun, Stdin};
use super::sweep::Swept;
use super::terminal;
use crate::protocol::session::{CHUNK, WINDOW};
use crate::wire::session::input::What as In;
use crate::wire::session::output::What as Out;
use crate::wire::session::{Exited, HungUp, Input, Nothing, Output, Started};

/// How long the first message may take.
const FIRST: Duration = Duration::from_secs(30);

/// How long after the command's exit other processes may keep its output open.
const LINGER: Duration = Duration::from_millis(250);

/// Credit is returned in steps of this many bytes, or when no input is queued.
const CREDIT: usize = WINDOW / 4;

type Outputs = mpsc::Sender<Result<Output, Status>>;

/// The parent is gone: nothing can be sent any more.
struct Gone;

/// Runs the command that `input` requests, until its exit or the end of either stream.
pub(super) async fn serve(mut input: Streaming<Input>, out: Outputs, permit: OwnedSemaphorePermit) {
    if let Err(status) = command(&mut input, &out, permit).await {
        // A parent that closed the stream does not receive it.
        let _ = out.send(Err(status)).await;
    }
}

async fn command(
    input: &mut Streaming<Input>,
    out: &Outputs,
    permit: OwnedSemaphorePermit,
) -> Result<(), Status> {
    let first = timeout(FIRST, input.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no `start` message in time"))?;
    let Some(In::Start(mut start)) = first?.and_then(|input| input.what) else {
        return Err(Status::invalid_argument(
            "the first message must be `start`",
        ));
    };
    let by = start.requester.take();
    let plan = Plan::new(start).map_err(Status::invalid_argument)?;
    let mut record = CommandRecord::new(&plan, by);
    let (mut process, streams) = tokio::select! {
        started = process::start(plan, permit) => match started {
            Ok(started) => started,
            Err(failed) => {
                record.failed(&failed.what);
                let _ = send(out, Out::Failed(failed)).await;
                return Ok(());
            }
        },
        () = out.closed() => return Ok(()),
    };
    let streams = Io::new(streams).map_err(|error| Status::internal(error.to_string()));
    let (io, input_fd) = streams?;
    let pid = process.id();
    record.started(pid);
    if send(out, Out::Started(Started { pid })).await.is_err() {
        return Ok(());
    }
    let stdin = Stdin::default();
    let (leader, closer) = (process.pid(), process.input_closer());
    let exited = tokio::select! {
        biased;
        () = out.closed() => return Ok(()),
        stopped = handle_input(input, &stdin, &io, leader) => match stopped {
            Stopped::Violation(status) => return Err(status),
            Stopped::HungUp => None,
        },
        written = write_input(&stdin, input_fd, &io, out, &closer) => return written,
        exited = output(&mut process, &io, out) => Some(exited?),
    };
    match exited {
        Some(exited) => {
            record.exited(exited.how.as_ref());
            if send(out, Out::Exited(exited)).await.is_ok() {
                process.leave();
            }
        }
        None => {
            let swept = process.end().await;
            record.hung_up(&swept);
            let _ = send(out, Out::HungUp(hung_up(&swept))).await;
        }
    }
    Ok(())
}

/// The most process ids in one message.
const MAX_LEFT: usize = 64;

fn hung_up(swept: &Swept) -> HungUp {
    let left = swept.left.iter().take(MAX_LEFT);
    let pid = |pid: &Pid| pid.as_raw_nonzero().get().unsigned_abs();
    HungUp {
        left: left.map(pid).collect(),
        unknown: swept.unknown,
    }
}

async fn send(out: &Outputs, what: Out) -> Result<(), Gone> {
    let output = Output { what: Some(what) };
    out.send(Ok(output)).await.map_err(|_| Gone)
}

/// The descriptors of a command's output.
struct Io {
    stdout: Arc<Fd>,
    /// `None` with a terminal.
    stderr: Option<Fd>,
    /// The terminal's master end, if there is one.
    terminal: Option<Arc<Fd>>,
}

type Fd = AsyncFd<OwnedFd>;

#[allow(
    deprecated,
    reason = "the successor is unsafe and new; it requires that the descriptor stays open and the same \
              while it is watched, as an owned one does"
)]
fn watch_fd(fd: OwnedFd) -> io::Result<Fd> {
    hvsock_sys::set_nonblocking(&fd, true)?;
    AsyncFd::new(fd)
}

impl Io {
    /// Also returns the descriptor of the command's input.
    fn new(streams: Streams) -> io::Result<(Self, Option<Arc<Fd>>)> {
        match streams {
            Streams::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                let input_fd = stdin.map(watch_fd).transpose()?.map(Arc::new);
                let io = Self {
                    stdout: Arc::new(watch_fd(stdout)?),
                    stderr: Some(watch_fd(stderr)?),
                    terminal: None,
                };
                Ok((io, input_fd))
            }
            Streams::Terminal(outer) => {
                let outer = Arc::new(watch_fd(outer)?);
                let io = Self {
                    stdout: Arc::clone(&outer),
                    stderr: None,
                    terminal: Some(Arc::clone(&outer)),
                };
                Ok((io, Some(outer)))
            }
        }
    }
}

/// Why the parent's messages have stopped.
enum Stopped {
    /// The parent disconnected or violated the protocol.
    Violation(Status),
    /// The parent wants the command to end.
    HungUp,
}

/// Handles the parent's messages.
async fn handle_input(
    input: &mut Streaming<Input>,
    stdin: &Stdin,
    io: &Io,
    leader: Pid,
) -> Stopped {
    loop {
        let what = match input.message().await {
            Ok(Some(input)) => input.what,
            Ok(None) => {
                stdin.end();
                pending::<()>().await;
                None
            }
            Err(status) => return Stopped::Violation(status),
        };
        let taken = match what {
            Some(In::Stdin(bytes)) => stdin.push(&bytes).map_err(|Overrun| {
                format!("more than {WINDOW} bytes are in flight to standard input")
            }),
            Some(In::StdinEnd(Nothing {})) => {
                stdin.end();
                Ok(())
            }
            Some(In::Resize(size)) => plan::size(size).map(|size| {
                if let Some(terminal) = &io.terminal {
                    // An error means that the terminal is gone.
                    let _ = tcsetwinsize(&**terminal, size);
                }
            }),
            Some(In::Signal(number)) => signal(number, io, leader),
            Some(In::HangUp(Nothing {})) => return Stopped::HungUp,
            Some(In::Start(_)) => Err("a second `start` message".to_owned()),
            // A message of a newer interface.
            None => Ok(()),
        };
        if let Err(what) = taken {
            return Stopped::Violation(Status::invalid_argument(what));
        }
    }
}

/// Sends a signal to the command, or to its whole process group if the signal ends programs.
fn signal(number: u32, io: &Io, leader: Pid) -> Result<(), String> {
    let signal = i32::try_from(number).ok().and_then(Signal::from_named_raw);
    let signal = signal.ok_or_else(|| format!("no signal {number}"))?;
    // The process is not reaped, so its id is not reused. It may have exited.
    let _ = match signal {
        Signal::HUP | Signal::INT | Signal::QUIT | Signal::TERM | Signal::KILL => {
            let terminal = io.terminal.as_ref();
            let foreground = terminal.and_then(|terminal| tcgetpgrp(&**terminal).ok());
            kill_process_group(foreground.unwrap_or(leader), signal)
        }
        _ => kill_process(leader, signal),
    };
    Ok(())
}

/// Writes the parent's input to the command, and returns credit. Returns only if the parent is gone or
/// the input cannot be written.
async fn write_input(
    stdin: &Stdin,
    input_fd: Option<Arc<Fd>>,
    io: &Io,
    out: &Outputs,
    closer: &InputCloser,
) -> Result<(), Status> {
    let Some(input_fd) = input_fd else {
        stdin.close();
        return pending().await;
    };
    match write_all(stdin, &input_fd, out).await {
        Ok(()) if io.terminal.is_some() => end_terminal(&input_fd).await,
        Ok(()) => {
            drop(input_fd);
            closer.close();
        }
        Err(Unwritten::Closed) => {
            drop(input_fd);
            stdin.close();
            if send(out, Out::StdinClosed(Nothing {})).await.is_err() {
                return Ok(());
            }
        }
        Err(Unwritten::Gone) => return Ok(()),
        Err(Unwritten::Failed(error)) => {
            let what = format!("cannot write the command's standard input: {error}");
            return Err(Status::internal(what));
        }
    }
    pending().await
}

/// Why writing stopped.
enum Unwritten {
    /// The command reads no more.
    Closed,
    /// The parent is gone.
    Gone,
    Failed(io::Error),
}

async fn write_all(stdin: &Stdin, fd: &Fd, out: &Outputs) -> Result<(), Unwritten> {
    let mut taken = 0;
    while let Some(bytes) = stdin.take(CHUNK).await {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let written = fd.async_io(Interest::WRITABLE, |fd| {
                rustix::io::retry_on_intr(|| rustix::io::write(fd, rest)).map_err(io::Error::from)
            });
            let count = written
                .await
                .map_err(|error| match Errno::from_io_error(&error) {
                    // The second one is a terminal's that no process has open any more.
                    Some(Errno::PIPE | Errno::IO) => Unwritten::Closed,
                    _ => Unwritten::Failed(error),
                })?;
            rest = &rest[count..];
        }
        taken += bytes.len();
        if taken >= CREDIT || stdin.is_empty() {
            stdin.credit(taken);
            let credit = u32::try_from(taken).unwrap_or(u32::MAX);
            send(out, Out::StdinTaken(credit))
                .await
                .map_err(|Gone| Unwritten::Gone)?;
            taken = 0;
        }
    }
    Ok(())
}

/// Writes the terminal's end-of-file character. An error means that the terminal is gone.
async fn end_terminal(terminal: &Fd) {
    let Ok(end) = terminal::end_of_file(terminal) else {
        return;
    };
    let written = terminal.async_io(Interest::WRITABLE, |fd| {
        rustix::io::write(fd, &[end]).map_err(io::Error::from)
    });
    let _ = written.await;
}

/// Sends the command's output until it has exited and all bytes that it wrote before are sent.
async fn output(process: &mut Process, io: &Io, out: &Outputs) -> Result<Exited, Status> {
    let (sender, end) = watch::channel(None);
    let ended = async {
        let how = process.exited().await;
        sender.send_replace(Some(Instant::now() + LINGER));
        how.ok_or_else(|| Status::internal("the command's end is unknown"))
    };
    let is_terminal = io.terminal.is_some();
    let stdout = pump(&io.stdout, is_terminal, end.clone(), out, Out::Stdout);
    let stderr = async {
        match &io.stderr {
            Some(fd) => pump(fd, false, end.clone(), out, Out::Stderr).await,
            None => Ok(false),
        }
    };
    let (how, stdout_open, stderr_open) = tokio::try_join!(ended, stdout, stderr)?;
    Ok(Exited {
        how: Some(how),
        output_left_open: stdout_open || stderr_open,
    })
}

/// Sends the output of `fd` until its end, or until a short time after the command's exit. Returns
/// whether another process still has it open. A failed read is an error, not the end.
async fn pump(
    fd: &Fd,
    is_terminal: bool,
    mut end: watch::Receiver<Option<Instant>>,
    out: &Outputs,
    wrap: fn(Bytes) -> Out,
) -> Result<bool, Status> {
    let mut buffer = Vec::new();
    // Output from before the exit was in the pipe then, so it is within this many bytes.
    let mut rest = None;
    loop {
        let Ok(slot) = out.reserve().await else {
            // The caller's select notices that the parent is gone.
            return pending().await;
        };
        buffer.clear();
        buffer.reserve(CHUNK);
        let limit = *end.borrow_and_update();
        let read = match limit {
            None => tokio::select! {
                biased;
                read = read_ready(fd, &mut buffer) => read,
                _ = end.changed() => continue,
            },
            Some(_) if rest.is_some_and(|rest| rest == 0) => return Ok(true),
            Some(limit) if Instant::now() < limit => {
                match timeout_at(limit, read_ready(fd, &mut buffer)).await {
                    Ok(read) => read,
                    Err(_) => continue,
                }
            }
            Some(_) => match read_now(fd.get_ref(), &mut buffer) {
                Err(Errno::AGAIN) => return Ok(true),
                read => read.map_err(io::Error::from),
            },
        };
        match read {
            Ok(0) => return Ok(false),
            Err(error) => {
                return match Errno::from_io_error(&error) {
                    // A terminal that no process has open any more.
                    Some(Errno::IO) if is_terminal => Ok(false),
                    _ => {
                        let what = format!("cannot read the command's output: {error}");
                        Err(Status::internal(what))
                    }
                };
            }
            Ok(count) => {
                if limit.is_some() {
                    let left = rest.unwrap_or_else(|| capacity(fd.get_ref()));
                    rest = Some(left.saturating_sub(count));
                }
                let what = wrap(Bytes::copy_from_slice(&buffer));
                slot.send(Ok(Output { what: Some(what) }));
            }
        }
    }
}

async fn read_ready(fd: &Fd, buffer: &mut Vec<u8>) -> io::Result<usize> {
    fd.async_io(Interest::READABLE, |fd| {
        read_now(fd, buffer).map_err(io::Error::from)
    })
    .await
}

fn read_now(fd: &OwnedFd, buffer: &mut Vec<u8>) -> Result<usize, Errno> {
    rustix::io::retry_on_intr(|| rustix::io::read(fd, spare_capacity(buffer)))
}

/// The capacity of a pipe in bytes; a terminal holds less than the default.
fn capacity(fd: &OwnedFd) -> usize {
    fcntl_getpipe_size(fd).unwrap_or(256 << 10)
}
