//! Real Linux guests in seconds: QEMU, the kernel of a distribution's package, and an initramfs made
//! here of busybox, the kernel modules that are needed and whatever files the caller adds. No disk
//! image, no root, and no KVM is needed.
//!
//! - [`Kit`] is what a guest is made of. [`Kit::find`] looks for it, and what is missing is told in
//!   a line that says what to install.
//! - [`Config`] says what a guest is to have: memory, files, a vhost-user-vsock device, a network.
//! - [`Guest`] is one that runs: commands in it ([`Guest::run`], [`Guest::spawn`],
//!   [`Guest::attach`]), files into it and out of it, pause, reset, the end. Commands go over ports of
//!   a virtio-serial device, so they work whatever becomes of vsock.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use hvsock_qemu::{Config, Guest, Kit, Vsock};
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
//! Every wait has a bound, and a guest that is dropped takes its QEMU and its files along. Messages
//! of failures quote the guest's console.

#![forbid(unsafe_code)]

mod cpio;
mod error;
mod guest;
mod initramfs;
mod kernel;
mod kit;
mod machine;
mod modules;
mod port;
mod program;
mod qmp;
mod tools;

pub use error::{Error, Missing};
pub use guest::{Guest, Output, Spawned};
pub use initramfs::File;
pub use kernel::Kernel;
pub use kit::Kit;
pub use machine::{Accelerator, Config, Network, Vsock};
pub use port::Attached;
