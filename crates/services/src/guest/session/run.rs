//! One command from its first message to its last.
//!
//! Bytes wait where they come from: what the command prints in its pipe until the parent has room,
//! what the parent sends with the parent once the window is full. Messages of the parent are read
//! all the time, so that a signal is never behind bytes that nobody takes.

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
use super::process::{self, Process, Streams};
use super::stdin::{Overrun, Stdin};
use super::terminal;
use crate::host::session::WINDOW;
use crate::wire::session::input::What as In;
use crate::wire::session::output::What as Out;
use crate::wire::session::{Exited, Input, Nothing, Output, Started};

/// How long the first message may take.
const FIRST: Duration = Duration::from_secs(30);

/// How long after a command's end others may have its output open.
const LINGER: Duration = Duration::from_millis(250);

/// Bytes of one message of output.
const PIECE: usize = 64 << 10;

/// So much that was taken is told in one message, or less once nothing waits.
const CREDIT: usize = WINDOW / 4;

type Outputs = mpsc::Sender<Result<Output, Status>>;

/// The parent has gone, so there is nobody to tell anything.
struct Gone;

/// Runs what `input` asks for, to its end or that of either stream.
pub(super) async fn serve(mut input: Streaming<Input>, out: Outputs, room: OwnedSemaphorePermit) {
    if let Err(status) = command(&mut input, &out, room).await {
        // Who broke off does not hear it.
        let _ = out.send(Err(status)).await;
    }
}

async fn command(
    input: &mut Streaming<Input>,
    out: &Outputs,
    room: OwnedSemaphorePermit,
) -> Result<(), Status> {
    let first = timeout(FIRST, input.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("what to run was not said in time"))?;
    let Some(In::Start(start)) = first?.and_then(|input| input.what) else {
        return Err(Status::invalid_argument(
            "the first message must be `start`",
        ));
    };
    let plan = Plan::new(start).map_err(Status::invalid_argument)?;
    let (mut process, streams) = tokio::select! {
        started = process::start(plan, room) => match started {
            Ok(started) => started,
            Err(failed) => {
                let _ = say(out, Out::Failed(failed)).await;
                return Ok(());
            }
        },
        () = out.closed() => return Ok(()),
    };
    let streams = Io::new(streams).map_err(|error| Status::internal(error.to_string()));
    let (io, inlet) = streams?;
    let pid = process.id();
    if say(out, Out::Started(Started { pid })).await.is_err() {
        return Ok(());
    }
    let stdin = Stdin::default();
    let leader = process.pid();
    let exited = tokio::select! {
        biased;
        () = out.closed() => return Ok(()),
        status = listen(input, &stdin, &io, leader) => return Err(status),
        () = feed(&stdin, inlet, &io, out) => return Ok(()),
        exited = output(&mut process, &io, out) => exited?,
    };
    if say(out, Out::Exited(exited)).await.is_ok() {
        process.leave();
    }
    Ok(())
}

async fn say(out: &Outputs, what: Out) -> Result<(), Gone> {
    let output = Output { what: Some(what) };
    out.send(Ok(output)).await.map_err(|_| Gone)
}

/// Where a command's output comes from.
struct Io {
    stdout: Arc<Fd>,
    /// None beside a terminal.
    stderr: Option<Fd>,
    /// The terminal's outer end, if there is one.
    terminal: Option<Arc<Fd>>,
}

type Fd = AsyncFd<OwnedFd>;

#[allow(
    deprecated,
    reason = "the successor is unsafe and new; it asks that the descriptor stays open and the same \
              while it is watched, as an owned one does"
)]
fn watch_fd(fd: OwnedFd) -> io::Result<Fd> {
    hvsock_sys::set_nonblocking(&fd, true)?;
    AsyncFd::new(fd)
}

impl Io {
    /// With it, where the command's input goes.
    fn new(streams: Streams) -> io::Result<(Self, Option<Arc<Fd>>)> {
        match streams {
            Streams::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                let inlet = stdin.map(watch_fd).transpose()?.map(Arc::new);
                let io = Self {
                    stdout: Arc::new(watch_fd(stdout)?),
                    stderr: Some(watch_fd(stderr)?),
                    terminal: None,
                };
                Ok((io, inlet))
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

/// Takes the parent's messages, until it breaks off or breaks a rule.
async fn listen(input: &mut Streaming<Input>, stdin: &Stdin, io: &Io, leader: Pid) -> Status {
    loop {
        let what = match input.message().await {
            Ok(Some(input)) => input.what,
            Ok(None) => {
                stdin.end();
                pending::<()>().await;
                None
            }
            Err(status) => return status,
        };
        let taken = match what {
            Some(In::Stdin(bytes)) => stdin.push(&bytes).map_err(|Overrun| {
                format!("more than {WINDOW} bytes are under way to standard input")
            }),
            Some(In::StdinEnd(Nothing {})) => {
                stdin.end();
                Ok(())
            }
            Some(In::Resize(size)) => plan::size(size).map(|size| {
                if let Some(terminal) = &io.terminal {
                    // A terminal that is gone has no size.
                    let _ = tcsetwinsize(&**terminal, size);
                }
            }),
            Some(In::Signal(number)) => signal(number, io, leader),
            Some(In::Start(_)) => Err("there is a command already".to_owned()),
            // Of a newer interface than this one.
            None => Ok(()),
        };
        if let Err(what) = taken {
            return Status::invalid_argument(what);
        }
    }
}

/// Sends a signal to the command, or to all of its group if it is one that ends programs.
fn signal(number: u32, io: &Io, leader: Pid) -> Result<(), String> {
    let signal = i32::try_from(number).ok().and_then(Signal::from_named_raw);
    let signal = signal.ok_or_else(|| format!("there is no signal {number}"))?;
    // The process is not reaped, so its number cannot be another's. It may have ended.
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

/// Writes what the parent sends to the command, and tells how much was taken. Ends only if the
/// parent has gone.
async fn feed(stdin: &Stdin, inlet: Option<Arc<Fd>>, io: &Io, out: &Outputs) {
    let Some(inlet) = inlet else {
        stdin.close();
        return pending().await;
    };
    match write_all(stdin, &inlet, out).await {
        Ok(()) if io.terminal.is_some() => end_terminal(&inlet).await,
        // Of a pipe, that it is closed.
        Ok(()) => drop(inlet),
        Err(Stopped::Closed) => {
            drop(inlet);
            stdin.close();
            if say(out, Out::StdinClosed(Nothing {})).await.is_err() {
                return;
            }
        }
        Err(Stopped::Gone) => return,
    }
    pending::<()>().await;
}

/// Why no more is written.
enum Stopped {
    /// Nobody reads it.
    Closed,
    Gone,
}

async fn write_all(stdin: &Stdin, fd: &Fd, out: &Outputs) -> Result<(), Stopped> {
    let mut taken = 0;
    while let Some(bytes) = stdin.take(PIECE).await {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let written = fd.async_io(Interest::WRITABLE, |fd| {
                rustix::io::retry_on_intr(|| rustix::io::write(fd, rest)).map_err(io::Error::from)
            });
            let count = written.await.map_err(|_| Stopped::Closed)?;
            rest = &rest[count..];
        }
        taken += bytes.len();
        if taken >= CREDIT || stdin.is_empty() {
            stdin.credit(taken);
            let credit = u32::try_from(taken).unwrap_or(u32::MAX);
            say(out, Out::StdinTaken(credit))
                .await
                .map_err(|Gone| Stopped::Gone)?;
            taken = 0;
        }
    }
    Ok(())
}

/// Types what ends the input. A terminal that is gone needs no end.
async fn end_terminal(terminal: &Fd) {
    let Ok(end) = terminal::end_of_file(terminal) else {
        return;
    };
    let typed = terminal.async_io(Interest::WRITABLE, |fd| {
        rustix::io::write(fd, &[end]).map_err(io::Error::from)
    });
    let _ = typed.await;
}

/// Sends what the command prints until it has ended, and then what it had printed by then.
async fn output(process: &mut Process, io: &Io, out: &Outputs) -> Result<Exited, Status> {
    let (tell, end) = watch::channel(None);
    let ended = async {
        let how = process.exited().await;
        tell.send_replace(Some(Instant::now() + LINGER));
        how
    };
    let stdout = pump(&io.stdout, end.clone(), out, Out::Stdout);
    let stderr = async {
        match &io.stderr {
            Some(fd) => pump(fd, end.clone(), out, Out::Stderr).await,
            None => false,
        }
    };
    let (how, stdout_open, stderr_open) = tokio::join!(ended, stdout, stderr);
    let how = how.ok_or_else(|| Status::internal("the command's end is unknown"))?;
    Ok(Exited {
        how: Some(how),
        output_left_open: stdout_open || stderr_open,
    })
}

/// Sends what comes out of `fd` until its end, or until a while after the command's own. Says
/// whether somebody else has it open then.
async fn pump(
    fd: &Fd,
    mut end: watch::Receiver<Option<Instant>>,
    out: &Outputs,
    wrap: fn(Bytes) -> Out,
) -> bool {
    let mut buffer = Vec::new();
    // What the command printed before its end was in the pipe then, so it is all in these bytes.
    let mut rest = None;
    loop {
        let Ok(room) = out.reserve().await else {
            // Whoever waits for this hears of that, too.
            return pending().await;
        };
        buffer.clear();
        buffer.reserve(PIECE);
        let limit = *end.borrow_and_update();
        let read = match limit {
            None => tokio::select! {
                biased;
                read = read_soon(fd, &mut buffer) => read,
                _ = end.changed() => continue,
            },
            Some(_) if rest.is_some_and(|rest| rest == 0) => return true,
            Some(limit) if Instant::now() < limit => {
                match timeout_at(limit, read_soon(fd, &mut buffer)).await {
                    Ok(read) => read,
                    Err(_) => continue,
                }
            }
            Some(_) => match read_now(fd.get_ref(), &mut buffer) {
                Err(Errno::AGAIN) => return true,
                read => read.map_err(io::Error::from),
            },
        };
        match read {
            // Of a terminal that nobody has open any more, the end is an error.
            Ok(0) | Err(_) => return false,
            Ok(count) => {
                if limit.is_some() {
                    let left = rest.unwrap_or_else(|| capacity(fd.get_ref()));
                    rest = Some(left.saturating_sub(count));
                }
                let what = wrap(Bytes::copy_from_slice(&buffer));
                room.send(Ok(Output { what: Some(what) }));
            }
        }
    }
}

async fn read_soon(fd: &Fd, buffer: &mut Vec<u8>) -> io::Result<usize> {
    fd.async_io(Interest::READABLE, |fd| {
        read_now(fd, buffer).map_err(io::Error::from)
    })
    .await
}

fn read_now(fd: &OwnedFd, buffer: &mut Vec<u8>) -> Result<usize, Errno> {
    rustix::io::retry_on_intr(|| rustix::io::read(fd, spare_capacity(buffer)))
}

/// The most bytes that can be in a pipe; a terminal holds less than the usual one.
fn capacity(fd: &OwnedFd) -> usize {
    fcntl_getpipe_size(fd).unwrap_or(256 << 10)
}
