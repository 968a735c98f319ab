//! `hvsock run`: runs a program whose `AF_VSOCK` and `AF_HYPERV` sockets the broker serves.

mod init;
mod preload;
mod probe;
mod register;
mod registering;
mod report;
mod seccomp;
mod setting;
mod way;

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;
use clap::Args;
use hvsock::{Endpoint, Fix};
use hvsock_interpose::broker::{AskError, OpenError, own_cid};
use hvsock_sys::machine::Machine;

use crate::context::Context;
use crate::failure::{Ended, Failure};
use crate::fix;
use crate::hint::Help;
use init::Init;
use register::Registration;
use registering::Names;
use setting::Setting;
use way::{Choice, Way};

pub use probe::{COMMAND as PROBE_COMMAND, run as run_probe};

/// Run an unmodified program that uses AF_VSOCK or AF_HYPERV
#[derive(Debug, Args)]
pub struct Run {
    /// Answer the program's socket calls by a seccomp filter, or fail
    #[arg(long, conflicts_with = "preload")]
    seccomp: bool,
    /// Answer them by a preloaded library, or fail: where seccomp is denied, for dynamic programs only
    #[arg(long)]
    preload: bool,
    /// Register a service while the program runs: the port given, or else what it listens for
    #[arg(long, value_name = "NAME[=PORT]")]
    register: Vec<Registration>,
    /// The program and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "PROGRAM"
    )]
    program: Vec<OsString>,
}

impl Run {
    pub fn run(self, context: &Context) -> Result<()> {
        let endpoint = context.endpoint();
        let own = own_cid(&endpoint).map_err(|error| no_broker(&endpoint, error))?;
        let setting = Setting {
            context,
            endpoint,
            own,
        };
        let (leases, names) = register::take(&setting, self.register)?;
        // Before any thread is started.
        let init = Init::new()?;
        let choice = match (self.seccomp, self.preload) {
            (true, _) => Choice::Seccomp,
            (_, true) => Choice::Preload,
            _ => Choice::Best,
        };
        let way = choice.resolve(&setting, &self.program[0])?;
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]);
        setting.name_endpoint(&mut command)?;
        let status = match way {
            Way::Seccomp => seccomp::run(&setting, &init, command, names)?,
            Way::Preload(library) => {
                let keeps_leases = !(leases.is_empty() && names.is_empty());
                let names = Names::new(&setting, names);
                preload::run(&setting, &init, command, library, names, keeps_leases)?
            }
        };
        drop(leases);
        match status {
            0 => Ok(()),
            status => Err(Ended(status).into()),
        }
    }
}

/// The error of a broker that does not serve.
fn no_broker(endpoint: &Endpoint, error: AskError) -> anyhow::Error {
    let AskError::Open(OpenError::NoBroker) = error else {
        let help = match error {
            AskError::TooOld => Some("restart the broker with the version of this command"),
            _ => None,
        };
        return match help {
            Some(help) => Failure::new(error.to_string()).help(help).into(),
            None => error.into(),
        };
    };
    let paths = endpoint.paths().iter();
    let paths: Vec<_> = paths.map(|path| path.display().to_string()).collect();
    let text = format!("no broker listens at {}", paths.join(" or "));
    let help = match fix::help(&Fix::StartBroker) {
        Help::Command(text) | Help::Sentence(text) => text,
    };
    let has_vsock = Machine::is_certainly_guest();
    let native = match has_vsock {
        true => {
            "; for AF_VSOCK alone run it without `hvsock run`: this virtual machine's kernel has it"
        }
        false => "",
    };
    Failure::new(text).help(format!("{help}{native}")).into()
}
