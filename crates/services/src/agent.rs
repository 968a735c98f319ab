//! The program `hvsock-agent`: the guest side of all integration services.

mod pairs;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use hvsock_log::Summaries;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::guest;
use crate::guest::freeze::freezer::{self, FreezeCommand};
use pairs::Pairs;

/// The guest agent of hvsock's integration services
///
/// Runs in a Linux guest of any hypervisor, or in a container. It needs no configuration and
/// accepts connections from its parent only: the host, which uses it through `hvsock exec`, `hvsock
/// cp` and the other integration commands.
#[derive(Debug, Parser)]
#[command(name = "hvsock-agent", version)]
struct Cli {
    /// Log debug messages too
    #[arg(long, short)]
    verbose: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

/// The programs that replace the agent in this process.
#[derive(Debug, Subcommand)]
enum Command {
    #[command(subcommand)]
    Kvp(Pairs),
    #[command(hide = true)]
    Freezer(Freezer),
}

/// The child process of the agent that freezes filesystems
#[derive(Debug, Args)]
struct Freezer {
    #[arg(long)]
    limit_ms: u64,
    #[arg(long)]
    hooks: PathBuf,
    mounts: Vec<PathBuf>,
}

/// Runs the program with the arguments of its command line.
pub fn main() -> ExitCode {
    hvsock_sys::standard_streams::fail_if_closed();
    let cli = Cli::parse();
    let _summaries = log(cli.verbose);
    // None of the programs that the agent starts may get what whoever started it left open.
    if let Err(error) = hvsock_sys::inherit::close_on_exec() {
        tracing::warn!("programs may inherit descriptors of the agent: {error}");
    }
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
        .context("cannot start the runtime")?;
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
    // Dropping the runtime drops all tasks; the tasks of running commands begin to end them.
    drop(runtime);
    guest::session::wait_for_sweeps();
    ended
}

impl Freezer {
    fn run(self) -> Result<()> {
        let command = FreezeCommand {
            limit: Duration::from_millis(self.limit_ms),
            hooks: self.hooks,
            mounts: self.mounts,
        };
        freezer::run(&command).context("cannot freeze filesystems")
    }
}

/// Logs to stderr, without timestamps (the journal adds them), in colour only on a terminal.
fn log(verbose: bool) -> Summaries {
    let level = match verbose {
        true => LevelFilter::DEBUG,
        false => LevelFilter::INFO,
    };
    hvsock_log::init(Targets::new().with_default(level), false)
}
