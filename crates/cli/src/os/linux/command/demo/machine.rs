//! The virtual machine of the demo: a Linux guest with a copy of this program.

use std::io::{IsTerminal as _, stderr};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use hvsock_guests::{Config, File, Guest, Kernel, Kit, Missing, Vmm, Vsock};

use crate::context::Context;
use crate::failure::Failure;
use crate::output;

/// The path of this program in the guest.
const PROGRAM: &str = "/bin/hvsock";

/// What runs the guest, on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VmmArg {
    /// User-mode Linux
    Uml,
    /// QEMU
    Qemu,
}

impl From<VmmArg> for Vmm {
    fn from(arg: VmmArg) -> Self {
        match arg {
            VmmArg::Uml => Self::Uml,
            VmmArg::Qemu => Self::Qemu,
        }
    }
}

/// The files that a guest needs: for this VMM, or for the first one that is installed.
///
/// # Errors
///
/// Fails with the packages to install if one is missing.
pub fn kit(vmm: Option<VmmArg>, fetch_kernel: bool) -> Result<Kit> {
    let found = match (vmm, fetch_kernel) {
        (None, false) => Kit::find(),
        (None, true) => Kit::find_for(Vmm::Uml).or_else(|_| Kit::find_or_fetch(Vmm::Qemu)),
        (Some(vmm), false) => Kit::find_for(vmm.into()),
        (Some(vmm), true) => Kit::find_or_fetch(vmm.into()),
    };
    found.map_err(|Missing { what, advice }| {
        let mut help = advice;
        if vmm == Some(VmmArg::Qemu) && !fetch_kernel && Kernel::find().is_err() {
            help.push_str(
                "; `hvsock demo --vm --vmm qemu --fetch-kernel` fetches a kernel without installing it",
            );
        }
        Failure::new(what).help(help).into()
    })
}

/// Boots a guest with the vsock device behind `socket`, and with its files in `folder`.
pub fn boot(
    kit: &Kit,
    name: &str,
    socket: &Path,
    folder: &Path,
    context: &Context,
) -> Result<Guest> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut config = Config::new(name);
    config.memory_mib = 512;
    config.folder = Some(folder.to_owned());
    config.files =
        File::program(&program, PROGRAM).context("cannot copy this program into the guest")?;
    config.vsock = Some(Vsock {
        socket: socket.to_owned(),
    });
    let progress = Progress::start(context);
    let guest = Guest::boot(kit, &config);
    drop(progress);
    Ok(guest?)
}

/// A line with the elapsed time, on a terminal only.
struct Progress(Option<(mpsc::Sender<()>, thread::JoinHandle<()>)>);

impl Progress {
    fn start(context: &Context) -> Self {
        if context.quiet || !stderr().is_terminal() {
            return Self(None);
        }
        let (stop, stopped) = mpsc::channel::<()>();
        let start = Instant::now();
        let count = move || {
            let tick = Duration::from_millis(100);
            while stopped.recv_timeout(tick) == Err(RecvTimeoutError::Timeout) {
                let seconds = start.elapsed().as_secs_f64();
                output::text_to_stderr(&format!("\r   starting… {seconds:.1} s"));
            }
            output::text_to_stderr("\r\x1b[K");
        };
        let thread = thread::Builder::new().name("progress".into()).spawn(count);
        Self(thread.ok().map(|thread| (stop, thread)))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.0.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}
