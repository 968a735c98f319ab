//! `hvsock`, the one command: a thin layer over the library `hvsock`, which reaches services, and
//! the broker's control API, which shows and changes what there is.
//!
//! [`command`] has a file for each group of subcommands, and [`os`] what differs between systems. What
//! they share: whom to ask ([`context`]), how things are printed ([`output`], [`table`], [`words`]), how failure is told
//! ([`failure`]), and bytes between standard input and output and a connection ([`bridge`]).

#![forbid(unsafe_code)]

mod bridge;
mod command;
mod context;
mod explain;
mod failure;
mod os;
mod output;
mod table;
mod words;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = command::Cli::parse();
    match command::run(cli) {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}
