//! Runs one command: relays input, output and signals until it exits.

use std::future::pending;
use std::io::{self, Read as _};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use hvsock_services::host::session::{self, Event, Exec, ExecError, Exit, Input, Running};
use hvsock_services::link::Target;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::escape::Escape;
use super::printer::{Printer, To};
use super::screen::{self, Raw};
use super::signals::{Caught, Signals};
use crate::context::Context;
use crate::os::stdio;

/// The exit status of a command that was not run, or whose status is unknown. `docker exec` has the
/// same.
pub const NOT_RUN: u8 = 125;

/// The number of ending signals after which the session closes. The guest then kills the command.
const MAX_SIGNALS: usize = 3;

/// The size of the input buffer, in bytes.
const CHUNK: usize = 64 * 1024;

/// Why a command has no exit status.
pub(super) enum Error {
    /// The reader of standard output closed it.
    OutputGone,
    /// The time limit is over.
    TimedOut(Duration),
    /// The guest or the connection failed.
    Exec(ExecError),
    /// This process failed.
    Local(anyhow::Error),
}

impl From<ExecError> for Error {
    fn from(error: ExecError) -> Self {
        Self::Exec(error)
    }
}

fn local(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::Local(anyhow::Error::new(error).context(what))
}

/// Runs a command and returns its exit status as a shell reports it.
///
/// Every return drops the connection, so that the guest ends the command if it still runs.
///
/// # Errors
///
/// Fails if the command cannot be run or its status is unknown, after `timeout`, and when standard
/// output is closed.
pub(super) async fn run(
    context: &Context,
    target: &Target,
    exec: Exec,
    timeout: Option<Duration>,
) -> Result<u8, Error> {
    let mut signals = Signals::catch().map_err(local("cannot catch signals"))?;
    let (has_input, has_terminal) = (exec.stdin, exec.terminal.is_some());
    let timed_out = async {
        match timeout {
            Some(limit) => {
                sleep(limit).await;
                limit
            }
            None => pending().await,
        }
    };
    tokio::pin!(timed_out);
    let running = tokio::select! {
        running = session::start(target, exec) => running?,
        number = ending(&mut signals) => return Ok(128 + number),
        limit = &mut timed_out => return Err(Error::TimedOut(limit)),
    };
    let raw = match has_terminal {
        true => Some(Raw::enter().map_err(local("cannot use the terminal"))?),
        false => None,
    };
    let input = running.input.clone();
    let fed = async {
        if has_input || has_terminal {
            feed(context, input, has_terminal).await
        } else {
            pending().await
        }
    };
    let ended = tokio::select! {
        ended = relay(running, &mut signals, has_terminal) => ended,
        Escaped = fed => Ok(Ended::Left(NOT_RUN)),
        limit = timed_out => Err(Error::TimedOut(limit)),
    };
    drop(raw);
    match ended? {
        Ended::Left(status) => Ok(status),
        Ended::Exited(exit) => {
            if exit.output_left_open {
                context.note(
                    "a background process keeps the command's output open; its output is lost",
                );
            }
            Ok(exit.code())
        }
    }
}

/// Waits for an ending signal.
async fn ending(signals: &mut Signals) -> u8 {
    loop {
        if let Caught::Ending(number) = signals.next().await {
            return number;
        }
    }
}

enum Ended {
    /// The command exited.
    Exited(Exit),
    /// The user left the session. This program exits with this status.
    Left(u8),
}

/// Relays output and signals until the command exits.
async fn relay(
    running: Running,
    signals: &mut Signals,
    has_terminal: bool,
) -> Result<Ended, Error> {
    let Running {
        input, mut output, ..
    } = running;
    let mut printer = None;
    let mut waiting = None;
    let mut endings = 0;
    let ended = loop {
        let permit = printer.as_ref().map(Printer::permit);
        let permit = async {
            match permit {
                Some(permit) => permit.await,
                None => pending().await,
            }
        };
        tokio::select! {
            permit = permit, if waiting.is_some() => {
                let (Some(chunk), Ok(permit)) = (waiting.take(), permit) else {
                    break None;
                };
                permit.send(chunk);
            }
            event = output.next(), if waiting.is_none() => {
                waiting = match event? {
                    Event::Stdout(bytes) => Some((To::Stdout, bytes)),
                    Event::Stderr(bytes) => Some((To::Stderr, bytes)),
                    Event::StdinClosed => None,
                    Event::Exited(exit) => break Some(Ended::Exited(exit)),
                };
                if waiting.is_some() && printer.is_none() {
                    let started = Printer::start();
                    printer = Some(started.map_err(local("cannot start a thread"))?);
                }
            }
            caught = signals.next() => match caught {
                Caught::Ending(number) => {
                    endings += 1;
                    if has_terminal || endings >= MAX_SIGNALS {
                        return Ok(Ended::Left(128 + number));
                    }
                    pass_on(&input, number);
                }
                Caught::Other(number) if !has_terminal => pass_on(&input, number),
                Caught::Resized if has_terminal => {
                    let input = input.clone();
                    // The guest may apply backpressure, which must not delay output and signals.
                    tokio::spawn(async move { input.resize(screen::size()).await });
                }
                Caught::Other(_) | Caught::Resized => {}
            },
        }
    };
    let printed = async {
        match printer {
            Some(printer) => printer.finish().await,
            None => Ok(()),
        }
    };
    let printed = tokio::select! {
        printed = printed => printed,
        number = ending(signals) => return Ok(Ended::Left(128 + number)),
    };
    match printed {
        Ok(()) => ended.ok_or(Error::OutputGone),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Error::OutputGone),
        Err(error) => Err(local("cannot write the output")(error)),
    }
}

/// Sends a signal in a task, so that a guest that does not answer delays nothing else.
fn pass_on(input: &Input, number: u8) {
    let input = input.clone();
    tokio::spawn(async move { input.signal(number).await });
}

/// The user typed the escape sequence.
struct Escaped;

/// Sends standard input to the command, then shuts the input down.
async fn feed(context: &Context, input: Input, has_terminal: bool) -> Escaped {
    let mut chunks = reader();
    let mut escape = has_terminal.then(Escape::default);
    while let Some(chunk) = chunks.recv().await {
        let (bytes, ends) = match (chunk, &mut escape) {
            (Ok(bytes), None) => (bytes, false),
            (Ok(bytes), Some(escape)) => {
                let (send, ends) = escape.scan(&bytes);
                (send.into(), ends)
            }
            (Err(error), _) => {
                context.note(&format!("not all input was sent: {error}"));
                break;
            }
        };
        if input.send(bytes).await.is_err() {
            return pending().await;
        }
        if ends {
            return Escaped;
        }
    }
    // The command may have exited.
    let _ = input.end().await;
    pending().await
}

/// Reads standard input in a thread, which ends with the process.
fn reader() -> mpsc::Receiver<io::Result<Bytes>> {
    let (send, chunks) = mpsc::channel(1);
    let read = move || -> io::Result<()> {
        let mut stdin = stdio::input()?;
        let mut buffer = vec![0; CHUNK];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    let chunk = Bytes::copy_from_slice(&buffer[..count]);
                    if send.blocking_send(Ok(chunk)).is_err() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let _ = send.blocking_send(Err(error));
                    return Ok(());
                }
            }
        }
    };
    // If the thread cannot start, the input is empty.
    let _ = thread::Builder::new().name("stdin".to_owned()).spawn(read);
    chunks
}
