//! The subcommands that differ on Windows.

mod status;

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

impl Command {
    pub fn run(self, _context: &Context) -> Result<()> {
        match self {
            Self::Status(command) => command.run(),
        }
    }
}
