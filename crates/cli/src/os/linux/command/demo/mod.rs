//! `hvsock demo`: the whole system in a few seconds, told step by step.
//!
//! The broker runs in this process, in a temporary folder; [`guest`] is a second process in a
//! second partition, which does what [`story`] tells it to by [`process`]; [`narrator`] prints.
//! With `--vm` the second partition is a virtual machine ([`machine`]), and the story is [`vm_story`],
//! which ends with the integration services ([`services`]).

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

pub use guest::Guest;

use crate::context::Context;
use crate::os::linux::signals::Termination;

/// See all of it in a few seconds: services, partitions, refusals, pause, figures
#[derive(Debug, Args)]
#[command(after_help = "\
It needs no privilege, starts its own broker in a temporary folder, and leaves nothing behind.

With --vm the second partition is a real Linux guest under QEMU, reached through a virtio-vsock device
of the broker. It takes some 30 seconds, without KVM, and needs three packages of Debian's:
  apt-get install qemu-system-x86 linux-image-cloud-amd64 busybox-static")]
pub struct Demo {
    /// Boot a real Linux guest, and tell the story with it
    #[arg(long)]
    vm: bool,
    /// Fetch a kernel's package (by apt-get download, 35 MB) into the cache folder if there is no kernel
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
            .context("cannot make a temporary folder")?;
        remove_on_signal(&folder)?;
        match kit {
            Some(kit) => vm_story::tell(folder.path(), &kit, context),
            None => story::tell(folder.path()),
        }
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
