//! `hvsock`, the command: a thin layer over the library `hvsock`, which listens and connects, and
//! the broker's control API, which shows and changes its state.
//!
//! [`command`] has a file for each group of subcommands, and [`os`] a folder for each system.
//! They share the choice of the broker ([`context`]), output ([`output`], [`table`], [`format`]),
//! what follows a restart of the broker ([`backoff`]), failures ([`failure`], [`explain`]), help texts ([`help`]), shell completion ([`complete`]), and
//! the copy loop between standard input and output and a connection ([`bridge`]).

#![forbid(unsafe_code)]

mod backoff;
mod bridge;
mod command;
mod complete;
mod context;
mod explain;
mod failure;
mod fix;
mod format;
mod help;
mod hint;
mod os;
mod output;
mod table;

use std::process::ExitCode;

fn main() -> ExitCode {
    os::stdio::prepare();
    complete::run_if_requested(command::definition);
    let result = match os::run_internal() {
        Some(result) => result.map(|()| ExitCode::SUCCESS),
        None => match command::parse() {
            Ok(cli) => command::run(cli),
            Err(status) => return status,
        },
    };
    result.unwrap_or_else(|error| failure::report(&error))
}
