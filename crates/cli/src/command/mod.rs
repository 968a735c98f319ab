//! The subcommands, one file for each group.

mod connect;
mod listen;
mod man;
mod service;
mod target;
mod why;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::context::Context;
use crate::{complete, help, os};

/// Hyper-V sockets: reach services in any virtual machine or container of this machine by name
///
/// A service has a friendly name and a GUID. Register it once. Processes in other partitions (the
/// host, containers, virtual machines) then listen and connect by that name, without a network.
/// Every refusal has a reason.
#[derive(Debug, Parser)]
#[command(name = "hvsock", bin_name = "hvsock", version, styles = help::STYLES, propagate_version = false)]
pub struct Cli {
    #[command(flatten)]
    context: Context,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(subcommand, display_order = 4)]
    Service(service::Service),
    #[command(subcommand, display_order = 5)]
    Vm(os::Vm),
    #[command(display_order = 20)]
    Listen(listen::Listen),
    #[command(display_order = 21)]
    Connect(connect::Connect),
    #[command(display_order = 22)]
    Why(why::Why),
    #[command(display_order = 30)]
    Completions(man::Completions),
    #[command(display_order = 31)]
    Man(man::Man),
    /// The commands of one system, which `display_order` mixes with the others.
    #[command(flatten)]
    OfSystem(os::Command),
}

/// The command line with all help texts and completers.
pub fn definition() -> clap::Command {
    complete::attach(help::attach(Cli::command()))
}

/// Parses this process's arguments. For an option such as `--help`, or after a usage error, prints
/// the text and exits.
pub fn parse() -> Cli {
    let mut command = definition();
    let mut matches = command.get_matches_mut();
    Cli::from_arg_matches_mut(&mut matches)
        .unwrap_or_else(|error| error.format(&mut command).exit())
}

/// Runs a parsed command line.
pub fn run(cli: Cli) -> Result<ExitCode> {
    let context = &cli.context;
    let result = match cli.command {
        Command::Service(command) => command.run(context),
        Command::Vm(command) => command.run(context),
        Command::Listen(command) => command.run(context),
        Command::Connect(command) => command.run(context),
        Command::Why(command) => return command.run(context),
        Command::Completions(command) => command.run(definition()),
        Command::Man(command) => command.run(definition()),
        Command::OfSystem(command) => command.run(context),
    };
    result.map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_sound() {
        super::definition().debug_assert();
    }
}
