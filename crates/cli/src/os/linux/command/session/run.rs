//! The life of one command, as seen from here.

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

/// After so many signals that should have ended the command the connection ends, and with that
/// whatever is there.
const ENOUGH: usize = 3;

/// Bytes of input at once.
const PIECE: usize = 64 * 1024;

/// Why it came to nothing.
pub(super) enum Error {
    /// Nobody reads our output.
    OutputGone,
    /// It took longer than it was given.
    TimedOut(Duration),
    /// The guest's half, or the way there.
    Exec(ExecError),
    /// Something here.
    Here(anyhow::Error),
}

impl From<ExecError> for Error {
    fn from(error: ExecError) -> Self {
        Self::Exec(error)
    }
}

fn here(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::Here(anyhow::Error::new(error).context(what))
}

/// Runs it to its end, which is an exit status as a shell has it.
///
/// Whatever makes this return drops the connection, and so has the guest end what may still run.
pub(super) async fn run(
    context: &Context,
    target: &Target,
    exec: Exec,
    timeout: Option<Duration>,
) -> Result<u8, Error> {
    let mut signals = Signals::catch().map_err(here("cannot catch signals"))?;
    let (has_input, has_terminal) = (exec.stdin, exec.terminal.is_some());
    let out_of_time = async {
        match timeout {
            Some(limit) => {
                sleep(limit).await;
                limit
            }
            None => pending().await,
        }
    };
    tokio::pin!(out_of_time);
    let running = tokio::select! {
        running = session::start(target, exec) => running?,
        number = ending(&mut signals) => return Ok(128 + number),
        limit = &mut out_of_time => return Err(Error::TimedOut(limit)),
    };
    let raw = match has_terminal {
        true => Some(Raw::enter().map_err(here("cannot use the terminal"))?),
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
        ended = converse(running, &mut signals, has_terminal) => ended,
        Escaped = fed => Ok(Ended::Left(super::NOT_RUN)),
        limit = out_of_time => Err(Error::TimedOut(limit)),
    };
    drop(raw);
    match ended? {
        Ended::Left(status) => Ok(status),
        Ended::Exited(exit) => {
            if exit.output_left_open {
                context.note(
                    "a process that it left running has its output; what that prints is lost",
                );
            }
            Ok(exit.code())
        }
    }
}

/// Waits for a signal that ends programs.
async fn ending(signals: &mut Signals) -> u8 {
    loop {
        if let Caught::Ending(number) = signals.next().await {
            return number;
        }
    }
}

enum Ended {
    /// By itself.
    Exited(Exit),
    /// We left it, with this exit status of ours.
    Left(u8),
}

/// Prints what comes and passes signals on, until the command's end.
async fn converse(
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
        let room = printer.as_ref().map(Printer::room);
        let room = async {
            match room {
                Some(room) => room.await,
                None => pending().await,
            }
        };
        tokio::select! {
            room = room, if waiting.is_some() => {
                let (Some(piece), Ok(room)) = (waiting.take(), room) else {
                    break None;
                };
                room.send(piece);
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
                    printer = Some(started.map_err(here("cannot start a thread"))?);
                }
            }
            caught = signals.next() => match caught {
                Caught::Ending(number) => {
                    endings += 1;
                    if has_terminal || endings >= ENOUGH {
                        return Ok(Ended::Left(128 + number));
                    }
                    pass_on(&input, number);
                }
                Caught::Other(number) if !has_terminal => pass_on(&input, number),
                Caught::Resized if has_terminal => {
                    let input = input.clone();
                    // It may have to wait, which nothing else should.
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
        Err(error) => Err(here("cannot write the output")(error)),
    }
}

/// Sends a signal, which a guest that does not answer holds up and nothing else.
fn pass_on(input: &Input, number: u8) {
    let input = input.clone();
    tokio::spawn(async move { input.signal(number).await });
}

/// The session was left by what was typed.
struct Escaped;

/// Sends what is read from standard input, to its end.
async fn feed(context: &Context, input: Input, has_terminal: bool) -> Escaped {
    let mut pieces = reader();
    let mut escape = has_terminal.then(Escape::default);
    while let Some(piece) = pieces.recv().await {
        let (bytes, ends) = match (piece, &mut escape) {
            (Ok(bytes), None) => (bytes, false),
            (Ok(bytes), Some(escape)) => {
                let (send, ends) = escape.pass(&bytes);
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
    // It may have ended.
    let _ = input.end().await;
    pending().await
}

/// Reads standard input in a thread, which the end of the process ends.
fn reader() -> mpsc::Receiver<io::Result<Bytes>> {
    let (send, pieces) = mpsc::channel(1);
    let read = move || -> io::Result<()> {
        let mut stdin = stdio::input()?;
        let mut buffer = vec![0; PIECE];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    let piece = Bytes::copy_from_slice(&buffer[..count]);
                    if send.blocking_send(Ok(piece)).is_err() {
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
    // Without the thread there is no input, as after its end.
    let _ = thread::Builder::new().name("stdin".to_owned()).spawn(read);
    pieces
}
