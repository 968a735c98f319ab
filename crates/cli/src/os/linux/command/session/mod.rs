//! `hvsock exec` and `hvsock shell`: commands in a guest as if they ran here.
//!
//! [`run`] has the life of one; [`escape`] is the way out of a shell that no longer answers,
//! [`printer`] what its output goes through, [`screen`] the terminal that it has, and [`signals`]
//! what is passed on.

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

use crate::context::Context;
use crate::failure::{self, Ended, Failure, OutputGone};
use crate::os::{Partition, guest_services, help};

/// Exit status for a command that did not come about, or whose end is not known: one that few
/// programs have, so that a script can tell. It is what Docker has.
const NOT_RUN: u8 = 125;
/// Exit statuses of shells.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// What `timeout` ends with.
const OUT_OF_TIME: u8 = 124;

/// Run a command in a virtual machine or container
#[derive(Debug, Args)]
#[command(after_help = help::EXEC)]
pub struct Exec {
    /// The virtual machine or container, by name or id
    vm: Partition,
    /// Give the command what comes on standard input
    #[arg(long, short)]
    interactive: bool,
    /// Give the command a terminal, which is this one
    #[arg(long, short)]
    tty: bool,
    /// As this user, by name or number [default: the agent's, mostly root]
    #[arg(long, short)]
    user: Option<String>,
    /// In this directory [default: the user's home]
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// With this variable in the environment; without a value, the one it has here
    #[arg(long, short, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// End it after so many seconds, with exit status 124
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// The command, and its arguments
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<OsString>,
}

/// Open a shell in a virtual machine or container
#[derive(Debug, Args)]
#[command(after_help = help::SHELL)]
pub struct Shell {
    /// The virtual machine or container, by name or id
    vm: Partition,
    /// As this user, by name or number [default: the agent's, mostly root]
    #[arg(long, short)]
    user: Option<String>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| *seconds > 0.0);
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "a time of more than 0 seconds".to_owned())
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
                let sentence = format!("-t needs a terminal, and {which} is none");
                return Err(Failure::usage(sentence).into());
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
        go(context, &self.vm, exec, self.timeout)
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
        go(context, &self.vm, exec, None)
    }
}

/// Runs it and ends as it ends; what of it is our own failure has an exit status of its own.
fn go(
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
        Err(run::Error::TimedOut(limit)) => (out_of_time(limit), OUT_OF_TIME),
        Err(run::Error::Exec(error)) => told(context, error),
        Err(run::Error::Here(error)) => (error, NOT_RUN),
    };
    // Said already.
    let _ = failure::report(&error);
    Err(Ended(status).into())
}

fn out_of_time(limit: Duration) -> anyhow::Error {
    let limit = limit.as_secs_f64();
    Failure::new(format!("it was ended after {limit} seconds")).into()
}

fn told(context: &Context, error: ExecError) -> (anyhow::Error, u8) {
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
        ExecError::Failed { what, .. } => Failure::new(format!("cannot run it: {what}")).into(),
        error => Failure::new(error.to_string()).into(),
    };
    (error, status)
}

/// A variable with its value; none if it has none here either.
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
    fn a_variable_has_the_value_that_is_said_or_else_the_one_here() {
        let pair = |name: &str, value: &str| Some((name.into(), value.into()));
        assert_eq!(variable("A=b=c".as_ref()), pair("A", "b=c"));
        assert_eq!(variable("A=".as_ref()), pair("A", ""));
        let path = env::var("PATH").unwrap();
        assert_eq!(variable("PATH".as_ref()), pair("PATH", &path));
        assert_eq!(variable("HVSOCK_NO_SUCH_VARIABLE".as_ref()), None);
    }
}
