//! Nothing on Windows: no service manager there passes sockets to a program.

use std::ffi::{OsStr, OsString};
use std::process::Command;

use anyhow::Result;
use clap::Args;
use hvsock::{HvAddr, HvListener, ListenOptions};
use hvsock_address::ServiceRef;

use crate::context::Context;

/// The option of `listen` for a command that takes its socket from a service manager: none.
#[derive(Debug, Args)]
pub struct Activation {}

/// What a service that accepts its connections itself is served with.
#[expect(dead_code, reason = "no command on Windows accepts itself")]
pub struct Served<'a> {
    pub listener: HvListener,
    pub options: ListenOptions,
    pub address: HvAddr,
    pub service: &'a ServiceRef,
    pub command: &'a [OsString],
    pub keep: bool,
    pub at_once: usize,
}

impl Activation {
    /// Never on Windows.
    pub fn accepts_itself(&self) -> bool {
        false
    }

    /// The command for one connection.
    pub fn command(&self, _service: &ServiceRef, program: &OsStr) -> Result<Command> {
        Ok(Command::new(program))
    }

    /// Not called on Windows.
    pub fn serve(&self, _context: &Context, _served: Served<'_>) -> Result<()> {
        Ok(())
    }
}
