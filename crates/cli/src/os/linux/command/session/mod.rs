//! `hvsock exec` and `hvsock shell`: run commands in a guest as if they ran here.
//!
//! [`run`] runs one command from start to exit. [`escape`] finds the escape sequence that leaves a
//! session, [`printer`] writes the output, [`screen`] controls the terminal, and [`signals`]
//! catches the signals to pass on.

mod escape;
mod printer;
mod run;
mod screen;
mod signals;

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use hvsock_services::host::session::{self, ExecError, Reason};

use self::run::{Ending, NOT_RUN};
use crate::context::Context;
use crate::failure::{self, Ended, Failure, OutputGone};
use crate::os::{Partition, guest_services};

/// The exit statuses of shells for these errors.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// The exit status of timeout(1).
const TIMED_OUT: u8 = 124;

/// Run a command in a virtual machine or container
#[derive(Debug, Args)]
pub struct Exec {
    /// The virtual machine or container, by name or GUID
    vm: Partition,
    /// Pass standard input to the command
    #[arg(long, short)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(long, short)]
    tty: bool,
    /// Run it as this user (name or id) [default: the agent's]
    #[arg(long, short)]
    user: Option<String>,
    /// Run it in this directory [default: the user's home]
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Set this variable; without a value, pass the one of this environment
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// End the command after this many seconds, with exit status 124
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

/// Open a login shell in a virtual machine or container
#[derive(Debug, Args)]
pub struct Shell {
    /// The virtual machine or container, by name or GUID
    vm: Partition,
    /// Run it as this user (name or id) [default: the agent's]
    #[arg(long, short)]
    user: Option<String>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| *seconds > 0.0);
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "expected more than 0 seconds".to_owned())
}

impl Exec {
    pub fn run(self, context: &Context) -> Result<()> {
        if self.tty {
            let missing = match (io::stdin().is_terminal(), io::stdout().is_terminal()) {
                (true, true) => None,
                (false, _) => Some("standard input"),
                (_, false) => Some("standard output"),
            };
            if let Some(which) = missing {
                let message = format!("-t needs a terminal, but {which} is not one");
                return Err(Failure::usage(message).into());
            }
        }
        let exec = session::Exec {
            argv: self.command,
            env: self.env.iter().filter_map(|text| variable(text)).collect(),
            dir: self.workdir,
            user: self.user,
            terminal: self.tty.then(screen::terminal),
            stdin: self.interactive,
        };
        run_session(context, &self.vm, exec, self.timeout)
    }
}

impl Shell {
    pub fn run(self, context: &Context) -> Result<()> {
        let tty = io::stdin().is_terminal() && io::stdout().is_terminal();
        let exec = session::Exec {
            user: self.user,
            terminal: tty.then(screen::terminal),
            stdin: true,
            ..session::Exec::default()
        };
        run_session(context, &self.vm, exec, None)
    }
}

/// Runs a command, and returns its exit status as an [`Ended`] error. Failures of this process have
/// exit statuses of their own.
fn run_session(
    context: &Context,
    vm: &Partition,
    exec: session::Exec,
    timeout: Option<Duration>,
) -> Result<()> {
    let target = guest_services::target(context, vm)?;
    let ended = guest_services::block_on(run::run(context, &target, exec, timeout))?;
    let (error, status) = match ended {
        Ok(0) => return Ok(()),
        Ok(status) => return Err(Ended(status).into()),
        Err(run::Error::OutputGone) => return Err(OutputGone.into()),
        Err(run::Error::NotStarted(limit)) => {
            let limit = limit.as_secs_f64();
            let text = format!("the guest did not start the command within {limit} seconds");
            (Failure::new(text).into(), TIMED_OUT)
        }
        Err(run::Error::TimedOut(limit, ending)) => {
            (timed_out(context, vm, limit, &ending), TIMED_OUT)
        }
        Err(run::Error::Input(error, ending)) => {
            (input_failed(context, vm, &error, &ending), NOT_RUN)
        }
        Err(run::Error::Exec(error)) => explained(context, error),
        Err(run::Error::Local(error)) => (error, NOT_RUN),
    };
    // The status of `report` would be 1 or 2.
    let _ = failure::report(&error);
    Err(Ended(status).into())
}

fn timed_out(context: &Context, vm: &Partition, limit: Duration, ending: &Ending) -> anyhow::Error {
    let limit = limit.as_secs_f64();
    let text = match ending {
        Ending::Exited(_) | Ending::Ended => {
            format!("the command was ended after {limit} seconds")
        }
        ending => format!(
            "the time limit of {limit} seconds is over; {}",
            told(ending)
        ),
    };
    with_processes(context, vm, Failure::new(text), ending).into()
}

fn input_failed(
    context: &Context,
    vm: &Partition,
    error: &io::Error,
    ending: &Ending,
) -> anyhow::Error {
    let text = format!("cannot read standard input: {error}; {}", told(ending));
    with_processes(context, vm, Failure::new(text), ending).into()
}

/// What is known of a command that was told to end.
fn told(ending: &Ending) -> String {
    match ending {
        Ending::Exited(_) => "the command exited by itself".to_owned(),
        Ending::Ended => "the command was ended".to_owned(),
        Ending::Left(pids) => format!(
            "the command was told to end, but its {} did not",
            match &pids[..] {
                [pid] => format!("process {pid}"),
                pids => format!("processes {}", listed(pids, ", ")),
            }
        ),
        Ending::Unknown => {
            "the command was told to end, but the guest did not report that it has".to_owned()
        }
    }
}

fn listed(pids: &[u32], separator: &str) -> String {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    pids.join(separator)
}

/// Adds the command that shows the processes that are left.
fn with_processes(context: &Context, vm: &Partition, failure: Failure, ending: &Ending) -> Failure {
    match ending {
        Ending::Left(pids) => {
            let pids = listed(pids, ",");
            let exec = context.command(&format!("hvsock exec {vm}"));
            failure.help(format!("{exec} -- ps -o pid,user,stat,args -p {pids}"))
        }
        _ => failure,
    }
}

/// The error of a command that was not run, with its exit status.
fn explained(context: &Context, error: ExecError) -> (anyhow::Error, u8) {
    let status = match &error {
        ExecError::Failed { reason, .. } => match reason {
            Reason::NotFound => NOT_FOUND,
            Reason::NotExecutable => NOT_EXECUTABLE,
            _ => NOT_RUN,
        },
        _ => NOT_RUN,
    };
    let error = match error {
        ExecError::Call(error) => guest_services::failure(context, error),
        ExecError::Failed { what, .. } => {
            Failure::new(format!("cannot run the command: {what}")).into()
        }
        error => Failure::new(error.to_string()).into(),
    };
    (error, status)
}

/// Parses NAME=VALUE. NAME alone takes its value from this environment, and is dropped if unset.
fn variable(text: &OsStr) -> Option<(OsString, OsString)> {
    let bytes = text.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) => {
            let name = OsString::from_vec(bytes[..at].to_vec());
            Some((name, OsString::from_vec(bytes[at + 1..].to_vec())))
        }
        None => Some((text.to_owned(), env::var_os(text)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_called_ended_only_if_the_guest_saw_that() {
        assert_eq!(told(&Ending::Ended), "the command was ended");
        let did_not = |pids: &[u32]| told(&Ending::Left(pids.to_vec()));
        let text = "the command was told to end, but its process 7 did not";
        assert_eq!(did_not(&[7]), text);
        let text = "the command was told to end, but its processes 7, 9 did not";
        assert_eq!(did_not(&[7, 9]), text);
        assert!(told(&Ending::Unknown).contains("did not report"));
    }

    #[test]
    fn a_variable_has_the_given_value_or_that_of_this_environment() {
        let pair = |name: &str, value: &str| Some((name.into(), value.into()));
        assert_eq!(variable("A=b=c".as_ref()), pair("A", "b=c"));
        assert_eq!(variable("A=".as_ref()), pair("A", ""));
        let path = env::var("PATH").unwrap();
        assert_eq!(variable("PATH".as_ref()), pair("PATH", &path));
        assert_eq!(variable("HVSOCK_NO_SUCH_VARIABLE".as_ref()), None);
    }
}
