//! `hvsock demo`: shows the whole system in a few seconds, step by step.
//!
//! The broker runs in this process, with its state in a temporary folder. [`guest`] is a second
//! process in a second partition. [`story`] sends it commands through [`process`], and [`narrator`]
//! prints. With `--vm` the second partition is a virtual machine ([`machine`]), and the steps are
//! those of [`vm_story`], which ends with the integration services ([`services`]).

mod guest;
mod machine;
mod narrator;
mod process;
mod props;
mod services;
mod story;
mod vm_story;

use std::thread;

use anyhow::{Context as _, Result};
use clap::Args;
use tempfile::TempDir;

pub use guest::{GUEST_COMMAND, run as run_guest};

use crate::context::Context;
use crate::os::linux::signals::Termination;

/// See services, partitions, refusals and a pause in a few seconds
#[derive(Debug, Args)]
pub struct Demo {
    /// Boot a Linux guest, and use it as the second partition
    #[arg(long)]
    vm: bool,
    /// Download a kernel (35 MB, with apt-get download) into the cache folder if none is found
    #[arg(long, requires = "vm")]
    fetch_kernel: bool,
}

impl Demo {
    pub fn run(self, context: &Context) -> Result<()> {
        let kit = self
            .vm
            .then(|| machine::kit(self.fetch_kernel))
            .transpose()?;
        let folder = tempfile::Builder::new()
            .prefix("hvsock-demo-")
            .tempdir()
            .context("cannot create a temporary folder")?;
        remove_on_signal(&folder)?;
        match kit {
            Some(kit) => vm_story::run(folder.path(), &kit, context),
            None => story::run(folder.path()),
        }
    }
}

/// Removes the folder if a signal ends the demo.
fn remove_on_signal(folder: &TempDir) -> Result<()> {
    let mut termination = Termination::catch().context("cannot catch signals")?;
    let path = folder.path().to_owned();
    let wait = move || {
        termination.wait();
        let _ = std::fs::remove_dir_all(path);
        // 128 + SIGINT, as a shell reports it.
        std::process::exit(130);
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(wait)
        .context("cannot start a thread")?;
    Ok(())
}
