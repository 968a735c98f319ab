//! `hvsock demo`: shows the whole system in a few seconds, step by step.
//!
//! [`supervisor`] runs it in a process of its own and removes its files afterwards, however it ends. In that
//! process is the broker, with its state in a temporary folder. [`guest`] is a second process in a second
//! partition. [`story`] sends it commands through [`process`], and [`narrator`] prints. With `--vm` the second
//! partition is a virtual machine ([`machine`]), and the steps are those of [`vm_story`], which ends with the
//! integration services ([`services`]).

mod guest;
mod machine;
mod narrator;
mod process;
mod props;
mod services;
mod story;
mod supervisor;
mod vm_story;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

pub use guest::{GUEST_COMMAND, run as run_guest};

use crate::context::Context;

/// See services, partitions, refusals and a pause in a few seconds
#[derive(Debug, Args)]
pub struct Demo {
    /// Boot a Linux guest, and use it as the second partition
    #[arg(long)]
    vm: bool,
    /// What runs the guest [default: User-mode Linux if it is installed, else QEMU]
    #[arg(long, value_name = "VMM", requires = "vm")]
    vmm: Option<machine::VmmArg>,
    /// Download a kernel for QEMU (35 MB, with apt-get download) into the cache folder if none is found
    #[arg(long, requires = "vm")]
    fetch_kernel: bool,
    /// The folder of a demo that is supervised
    #[arg(long, hide = true)]
    run_in: Option<PathBuf>,
}

impl Demo {
    pub fn run(self, context: &Context) -> Result<()> {
        let Some(folder) = &self.run_in else {
            // Fails before there is anything to remove.
            self.kit()?;
            return supervisor::run("--run-in");
        };
        supervisor::end_with_parent()?;
        match self.kit()? {
            Some(kit) => vm_story::run(folder, &kit, self.vmm.is_some(), context),
            None => story::run(folder),
        }
    }

    fn kit(&self) -> Result<Option<hvsock_guests::Kit>> {
        let find = || machine::kit(self.vmm, self.fetch_kernel);
        self.vm.then(find).transpose()
    }
}
