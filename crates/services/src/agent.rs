//! The program `hvsock-agent`: the guest's half of all integration services.

mod pairs;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;

use crate::guest;
use crate::guest::freeze::freezer::{self, Order};
use pairs::Pairs;

/// The guest's half of hvsock's integration services
///
/// It runs in a Linux guest of any hypervisor or in a container, needs no configuration, and
/// answers its parent only: the host, which reaches it with `hvsock exec`, `hvsock cp` and so on.
#[derive(Debug, Parser)]
#[command(name = "hvsock-agent", version)]
struct Cli {
    /// Say more
    #[arg(long, short)]
    verbose: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What the program does in place of being the agent.
#[derive(Debug, Subcommand)]
enum Command {
    #[command(subcommand)]
    Kvp(Pairs),
    #[command(hide = true)]
    Freezer(Freezer),
}

/// The agent's child that freezes filesystems
#[derive(Debug, Args)]
struct Freezer {
    #[arg(long)]
    limit_ms: u64,
    #[arg(long)]
    hooks: PathBuf,
    mounts: Vec<PathBuf>,
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log(cli.verbose);
    let done = match cli.command {
        None => run(),
        Some(Command::Kvp(pairs)) => pairs.run(guest::Config::new().kvp),
        Some(Command::Freezer(freezer)) => freezer.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot catch signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch signals")?;
        tokio::select! {
            () = guest::run(guest::Config::new()) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    });
    // With all tasks, of which those that have commands begin to end them.
    drop(runtime);
    guest::session::settle();
    ended
}

impl Freezer {
    fn run(self) -> Result<()> {
        let order = Order {
            limit: Duration::from_millis(self.limit_ms),
            hooks: self.hooks,
            mounts: self.mounts,
        };
        freezer::run(&order).context("cannot freeze")
    }
}

/// Logs to stderr: without times, which a journal adds, and in colour to a terminal only.
fn log(verbose: bool) {
    let level = match verbose {
        true => LevelFilter::DEBUG,
        false => LevelFilter::INFO,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}
