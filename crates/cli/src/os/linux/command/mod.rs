//! The subcommands that there are on Linux only: what runs a broker, and what asks one.

mod bench;
mod broker;
mod connections;
mod container;
mod cp;
mod demo;
mod events;
mod forward;
mod guest;
mod integration;
mod kvp;
mod nc;
mod partition;
mod session;
mod ssh;
mod status;
mod time;
mod vm;
mod wait;

use anyhow::Result;
use clap::Subcommand;

pub use vm::Vm;

use crate::context::Context;

#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(display_order = 1)]
    Demo(demo::Demo),
    #[command(display_order = 2)]
    Broker(broker::Broker),
    #[command(display_order = 3)]
    Status(status::Status),
    #[command(subcommand, display_order = 6)]
    Container(container::Container),
    #[command(display_order = 12)]
    Cp(cp::Cp),
    #[command(display_order = 10)]
    Exec(session::Exec),
    #[command(display_order = 11)]
    Shell(session::Shell),
    #[command(display_order = 13)]
    Forward(forward::Forward),
    #[command(display_order = 15)]
    Nc(nc::Nc),
    #[command(display_order = 14)]
    Ssh(ssh::Ssh),
    #[command(display_order = 23)]
    Connections(connections::Connections),
    #[command(display_order = 24)]
    Events(events::Events),
    #[command(display_order = 25)]
    Bench(bench::Bench),
    #[command(subcommand, display_order = 16)]
    Kvp(kvp::Kvp),
    #[command(hide = true, name = "demo-guest")]
    DemoGuest(demo::Guest),
}

impl Command {
    pub fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Demo(command) => command.run(context),
            Self::Broker(command) => command.run(context),
            Self::Status(command) => command.run(context),
            Self::Container(command) => command.run(context),
            Self::Cp(command) => command.run(context),
            Self::Forward(command) => command.run(context),
            Self::Nc(command) => command.run(context),
            Self::Ssh(command) => command.run(context),
            Self::Exec(command) => command.run(context),
            Self::Shell(command) => command.run(context),
            Self::Connections(command) => command.run(context),
            Self::Events(command) => command.run(context),
            Self::Bench(command) => command.run(context),
            Self::Kvp(command) => command.run(context),
            Self::DemoGuest(command) => command.run(),
        }
    }
}
