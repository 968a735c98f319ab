//! The subcommands that differ on Windows.

mod status;

use std::ffi::OsString;

use anyhow::Result;
use clap::Subcommand;

use crate::context::Context;

#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(display_order = 3)]
    Status(status::Status),
}

/// Runs a command that only this program uses. There is none on Windows.
pub fn run_internal() -> Option<Result<()>> {
    None
}

/// Nothing on Windows: its commands print no options of other programs.
pub fn invalid_arguments(_arguments: &[OsString]) {}

impl Command {
    pub fn run(self, _context: &Context) -> Result<()> {
        match self {
            Self::Status(command) => command.run(),
        }
    }
}
