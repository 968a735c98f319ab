//! Runs one command: relays input, output and signals until it exits.

use std::future::pending;
use std::io;
use std::time::Duration;

use hvsock_services::host::session::{
    self, Event, Exec, ExecError, Exit, HungUp, Input, Output, Running,
};
use hvsock_services::link::Target;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::escape::Escape;
use super::printer::{Chunk, Printer, To};
use super::screen::{self, Raw};
use super::signals::{Caught, Signals};
use crate::context::Context;
use crate::os::{guest_services, stdio};

/// The exit status of a command that was not run, or whose status is unknown. `docker exec` has the
/// same.
pub const NOT_RUN: u8 = 125;

/// The number of ending signals after which the session closes. The guest then kills the command.
const MAX_SIGNALS: usize = 3;

/// How long the guest may take to end a command: two seconds for its processes to end by themselves,
/// five for the kernel to end them, and some for the way.
const HANG_UP: Duration = Duration::from_secs(10);

/// How long the reader of the output may take for the last of it, after a command was ended.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// Why a command has no exit status.
pub(super) enum Error {
    /// The reader of standard output closed it.
    OutputGone,
    /// The time limit is over, before the command ran.
    NotStarted(Duration),
    /// The time limit is over.
    TimedOut(Duration, Ending),
    /// Standard input cannot be read.
    Input(io::Error, Ending),
    /// The guest or the connection failed.
    Exec(ExecError),
    /// This process failed.
    Local(anyhow::Error),
}

/// What is known of a command that was told to end.
pub(super) enum Ending {
    /// It exited by itself before.
    Exited(Exit),
    /// All of its processes have ended.
    Ended,
    /// These of its processes were not seen to end.
    Left(Vec<u32>),
    /// The guest did not report it.
    Unknown,
}

impl Error {
    /// The reason in a few words, for the audit.
    fn said(&self) -> String {
        match self {
            Self::OutputGone => "the reader of the output is gone".to_owned(),
            Self::NotStarted(limit) => format!("not started within {} s", limit.as_secs_f64()),
            Self::TimedOut(limit, _) => format!("told to end after {} s", limit.as_secs_f64()),
            Self::Input(error, _) => format!("standard input failed: {error}"),
            Self::Exec(error) => error.to_string(),
            Self::Local(error) => format!("{error:#}"),
        }
    }
}

/// Tells the audit how the command ended, on a thread that may block.
async fn state_result(context: &Context, connection: u64, said: String) {
    let context = context.clone();
    let stated = move || guest_services::state_result(&context, connection, &said);
    // It fails only if the runtime ends.
    let _ = spawn_blocking(stated).await;
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
/// Fails if the command cannot be run or its status is unknown, after `time_limit`, when standard input
/// fails, and when standard output is closed.
pub(super) async fn run(
    context: &Context,
    target: &Target,
    exec: Exec,
    time_limit: Option<Duration>,
) -> Result<u8, Error> {
    let mut signals = Signals::catch().map_err(local("cannot catch signals"))?;
    let (has_input, has_terminal) = (exec.stdin, exec.terminal.is_some());
    let timed_out = async {
        match time_limit {
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
        limit = &mut timed_out => return Err(Error::NotStarted(limit)),
    };
    let Running {
        input,
        mut output,
        connection,
        ..
    } = running;
    let raw = match has_terminal {
        true => Some(Raw::enter().map_err(local("cannot use the terminal"))?),
        false => None,
    };
    let fed = async {
        if has_input || has_terminal {
            feed(&input, has_terminal).await
        } else {
            pending().await
        }
    };
    let mut shown = Shown::default();
    let ended = tokio::select! {
        ended = relay(&input, &mut output, &mut shown, &mut signals, has_terminal) => ended,
        fed = fed => match fed {
            Fed::Escaped => Ok(Ended::Left(NOT_RUN)),
            Fed::Failed(error) => {
                let ending = hang_up(&input, &mut output, &mut signals).await;
                Err(Error::Input(error, ending))
            }
        },
        limit = timed_out => match hang_up(&input, &mut output, &mut signals).await {
            Ending::Exited(exit) => Ok(Ended::Exited(exit)),
            ending => Err(Error::TimedOut(limit, ending)),
        },
    };
    // Output from before the end; a reader that does not take it must not delay the report.
    let _ = timeout(LAST_OUTPUT, shown.finish()).await;
    drop(raw);
    // While the connection is open, so that the record of its end has it.
    let said = match &ended {
        Ok(Ended::Exited(exit)) => format!("exit status {}", exit.code()),
        Ok(Ended::Left(_)) => "left before the command ended".to_owned(),
        Err(error) => error.said(),
    };
    state_result(context, connection, said).await;
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

/// Ends the command, and waits until the guest reports the outcome. Output of the command meanwhile is
/// discarded.
async fn hang_up(input: &Input, output: &mut Output, signals: &mut Signals) -> Ending {
    let reported = async {
        // If the command has exited, the next event says so.
        let _ = input.hang_up().await;
        loop {
            match output.next().await {
                Ok(Event::HungUp(hung_up)) => return outcome(hung_up),
                Ok(Event::Exited(exit)) => return Ending::Exited(exit),
                Ok(Event::Stdout(_) | Event::Stderr(_) | Event::StdinClosed) => {}
                Err(_) => return Ending::Unknown,
            }
        }
    };
    tokio::select! {
        reported = timeout(HANG_UP, reported) => reported.unwrap_or(Ending::Unknown),
        _ = ending(signals) => Ending::Unknown,
    }
}

fn outcome(hung_up: HungUp) -> Ending {
    match (hung_up.left.is_empty(), hung_up.unknown) {
        (true, false) => Ending::Ended,
        (true, true) => Ending::Unknown,
        (false, _) => Ending::Left(hung_up.left),
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

/// The output on its way to the reader of this process's output.
#[derive(Default)]
struct Shown {
    printer: Option<Printer>,
    /// A chunk for which the printer's queue has no space yet.
    waiting: Option<Chunk>,
}

impl Shown {
    /// Waits until all of it is written.
    async fn finish(&mut self) -> io::Result<()> {
        let Some(printer) = self.printer.take() else {
            return Ok(());
        };
        if let Some(chunk) = self.waiting.take()
            && let Ok(permit) = printer.permit().await
        {
            permit.send(chunk);
        }
        printer.finish().await
    }
}

/// Relays output and signals until the command exits.
async fn relay(
    input: &Input,
    output: &mut Output,
    shown: &mut Shown,
    signals: &mut Signals,
    has_terminal: bool,
) -> Result<Ended, Error> {
    let mut endings = 0;
    let ended = loop {
        let Shown { printer, waiting } = &mut *shown;
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
                *waiting = match event? {
                    Event::Stdout(bytes) => Some((To::Stdout, bytes)),
                    Event::Stderr(bytes) => Some((To::Stderr, bytes)),
                    Event::StdinClosed => None,
                    Event::Exited(exit) => break Some(Ended::Exited(exit)),
                    // It was not asked for.
                    Event::HungUp(_) => {
                        let what = "the end of a command that was not told to end";
                        return Err(ExecError::Broken(what).into());
                    }
                };
                if waiting.is_some() && printer.is_none() {
                    let started = Printer::start();
                    *printer = Some(started.map_err(local("cannot start a thread"))?);
                }
            }
            caught = signals.next() => match caught {
                Caught::Ending(number) => {
                    endings += 1;
                    if has_terminal || endings >= MAX_SIGNALS {
                        return Ok(Ended::Left(128 + number));
                    }
                    pass_on(input, number);
                }
                Caught::Other(number) if !has_terminal => pass_on(input, number),
                Caught::Resized if has_terminal => {
                    let input = input.clone();
                    // The guest may apply backpressure, which must not delay output and signals.
                    tokio::spawn(async move { input.resize(screen::size()).await });
                }
                Caught::Other(_) | Caught::Resized => {}
            },
        }
    };
    let printed = tokio::select! {
        printed = shown.finish() => printed,
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

/// Why no more input is sent.
enum Fed {
    /// The user typed the escape sequence.
    Escaped,
    /// Standard input cannot be read.
    Failed(io::Error),
}

/// Sends standard input to the command, then shuts the input down.
async fn feed(input: &Input, has_terminal: bool) -> Fed {
    let mut chunks = stdio::chunks();
    let mut escape = has_terminal.then(Escape::default);
    while let Some(chunk) = chunks.recv().await {
        let (bytes, ends) = match (chunk, &mut escape) {
            (Ok(bytes), None) => (bytes, false),
            (Ok(bytes), Some(escape)) => {
                let (send, ends) = escape.scan(&bytes);
                (send.into(), ends)
            }
            (Err(error), _) => return Fed::Failed(error),
        };
        if input.send(bytes).await.is_err() {
            return pending().await;
        }
        if ends {
            return Fed::Escaped;
        }
    }
    // The command may have exited.
    let _ = input.end().await;
    pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_the_agent_could_not_see_is_unknown() {
        let outcome = |left: &[u32], unknown| {
            let left = left.to_vec();
            outcome(HungUp { left, unknown })
        };
        assert!(matches!(outcome(&[], false), Ending::Ended));
        assert!(matches!(outcome(&[], true), Ending::Unknown));
        assert!(matches!(outcome(&[7], true), Ending::Left(left) if left == [7]));
    }
}
