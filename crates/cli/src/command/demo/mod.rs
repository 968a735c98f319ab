//! `hvsock demo`: the whole system in a few seconds, told step by step.
//!
//! The broker runs in this process, in a temporary folder; [`guest`] is a second process in a
//! second partition, which does what [`story`] tells it to by [`process`]; [`narrator`] prints.

mod guest;
mod narrator;
mod process;
mod story;

use std::thread;

use anyhow::{Context as _, Result};
use clap::Args;
use tempfile::TempDir;

pub use guest::Guest;

use crate::context::Context;
use crate::signals::Termination;

/// See all of it in a few seconds: services, partitions, refusals, pause, figures
#[derive(Debug, Args)]
#[command(after_help = "\
It needs no privilege, starts its own broker in a temporary folder, and leaves nothing behind.")]
pub struct Demo {}

impl Demo {
    pub fn run(self, _: &Context) -> Result<()> {
        let folder = tempfile::Builder::new()
            .prefix("hvsock-demo-")
            .tempdir()
            .context("cannot make a temporary folder")?;
        remove_on_signal(&folder)?;
        story::tell(folder.path())
    }
}

/// Ctrl-C must leave nothing behind either.
fn remove_on_signal(folder: &TempDir) -> Result<()> {
    let mut termination = Termination::catch().context("cannot catch signals")?;
    let path = folder.path().to_owned();
    let wait = move || {
        termination.wait();
        let _ = std::fs::remove_dir_all(path);
        // As a shell reports a command that Ctrl-C ended.
        std::process::exit(130);
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(wait)
        .context("cannot start a thread")?;
    Ok(())
}
