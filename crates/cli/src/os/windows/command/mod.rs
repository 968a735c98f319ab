//! The subcommands that there are on Windows only, or in a way of their own.

mod status;

use anyhow::Result;
use clap::Subcommand;

use crate::context::Context;

#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(display_order = 3)]
    Status(status::Status),
}

impl Command {
    pub fn run(self, _context: &Context) -> Result<()> {
        match self {
            Self::Status(command) => command.run(),
        }
    }
}
