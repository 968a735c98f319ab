//! Boots real Linux guests in seconds: a virtual machine monitor, a distribution's kernel package, and an
//! initramfs of busybox, kernel modules and the caller's files. It needs no disk image, no root and no KVM.
//!
//! - [`Vmm`]: what runs them. User-mode Linux boots in a second and runs at nearly native speed; QEMU emulates
//!   a machine.
//! - [`Kit`]: the programs and the kernel. [`Kit::find`] locates those for the first VMM that is installed, and
//!   [`Kit::find_for`] those for one. The error names what is missing and the command that installs it.
//! - [`Config`]: a guest's memory, files, vhost-user-vsock device and network.
//! - [`Guest`]: a running guest. Run commands in it ([`Guest::run`], [`Guest::spawn`],
//!   [`Guest::attach`]), copy files and stop it; QEMU's can also be paused and reset from outside. Commands go over serial
//!   ports, so they do not depend on vsock.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use hvsock_guests::{Config, Guest, Kit, Vsock};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let kit = Kit::find()?;
//! let mut config = Config::new("web");
//! config.vsock = Some(Vsock { socket: "/run/hvsock/vm/web.sock".into() });
//! let guest = Guest::boot(&kit, &config)?;
//! let output = guest.run("uname -r", Duration::from_secs(5))?;
//! assert!(output.success());
//! # Ok(())
//! # }
//! ```
//!
//! In User-mode Linux, [`Guest::systemd`] starts the machine's own systemd on the machine's own files, with all changes
//! in the guest's memory.
//!
//! Every wait has a time limit. Dropping a guest kills its processes and removes its files. Errors quote the
//! guest's console.

#![forbid(unsafe_code)]

mod config;
mod cpio;
mod deadline;
mod error;
mod file;
mod guest;
mod initramfs;
mod kernel;
mod kit;
mod lock;
mod machine;
mod modules;
mod port;
mod program;
mod systemd;
mod tools;
mod vmm;

pub use config::{Accelerator, Config, Network, Role, Vsock};
pub use error::{Error, Missing};
pub use file::File;
pub use guest::{Guest, Output, Spawned};
pub use kernel::Kernel;
pub use kit::Kit;
pub use port::Attached;
pub use systemd::Systemd;
pub use vmm::Vmm;

#[cfg(test)]
mod tests {
    use super::*;

    /// Checked at compile time.
    #[test]
    fn public_types_are_send_and_sync() {
        fn assert<T: Send + Sync>() {}
        assert::<(
            Kit,
            Vmm,
            Kernel,
            Config,
            Accelerator,
            Network,
            Role,
            Vsock,
            File,
        )>();
        assert::<(
            Guest,
            Output,
            Spawned<'_>,
            Systemd<'_>,
            Attached,
            Error,
            Missing,
        )>();
    }
}
