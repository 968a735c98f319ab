//! The subcommands, one file for each group.

mod bench;
mod broker;
mod connect;
mod connections;
mod container;
mod demo;
mod events;
mod listen;
mod man;
mod partition;
mod service;
mod status;
mod target;
mod vm;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::builder::Styles;
use clap::builder::styling::AnsiColor;
use clap::{Parser, Subcommand};

use crate::context::Context;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Hyper-V sockets: reach services in any virtual machine or container of this machine by name
///
/// A service has a friendly name and a GUID. Register it once, and processes in other partitions
/// (the host, containers, virtual machines) listen and connect by that name, with no network.
/// Every refusal says why.
#[derive(Debug, Parser)]
#[command(name = "hvsock", version, styles = STYLES, propagate_version = false)]
#[command(after_help = "\
Start here:
  hvsock demo                                    see all of it in a few seconds
  hvsock broker                                  run the broker that the rest talks to
  hvsock service register 'HV Socket Demo'       allow a service
  hvsock listen 'HV Socket Demo' --keep -- cat   offer it
  hvsock connect loopback 'HV Socket Demo'       use it

Environment:
  HVSOCK_DIR       the broker's folder, as --dir
  HVSOCK_ENDPOINT  the endpoint socket to reach services by; `vsock` for the kernel's AF_VSOCK,
                   which a virtual machine without a broker uses by itself
  NO_COLOR         no colours

Exit status: 0 done, 1 refused or failed, 2 wrong usage.")]
pub struct Cli {
    /// The broker's folder: all its sockets and state
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print results and failures, and nothing else
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Demo),
    Broker(broker::Broker),
    Status(status::Status),
    #[command(subcommand)]
    Service(service::Service),
    #[command(subcommand)]
    Vm(vm::Vm),
    #[command(subcommand)]
    Container(container::Container),
    Listen(listen::Listen),
    Connect(connect::Connect),
    Why(why::Why),
    Connections(connections::Connections),
    Events(events::Events),
    Bench(bench::Bench),
    Completions(man::Completions),
    Man(man::Man),
    #[command(hide = true, name = "demo-guest")]
    DemoGuest(demo::Guest),
}

/// Runs what the command line says.
pub fn run(cli: Cli) -> Result<ExitCode> {
    let context = Context::new(cli.dir, cli.quiet);
    let done = match cli.command {
        Command::Demo(command) => command.run(&context),
        Command::Broker(command) => command.run(&context),
        Command::Status(command) => command.run(&context),
        Command::Service(command) => command.run(&context),
        Command::Vm(command) => command.run(&context),
        Command::Container(command) => command.run(&context),
        Command::Listen(command) => command.run(&context),
        Command::Connect(command) => command.run(&context),
        Command::Why(command) => return command.run(&context),
        Command::Connections(command) => command.run(&context),
        Command::Events(command) => command.run(&context),
        Command::Bench(command) => command.run(&context),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
        Command::DemoGuest(command) => command.run(),
    };
    done.map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
