//! The seam between a guest and its VMM. A [`Driver`] says how the VMM is found and started; what it can do
//! besides is its [`Control`].

use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::config::Config;
use crate::error::{Error, Missing};
use crate::kernel::Kernel;

/// The socket of a second monitor, where the VMM has monitors.
pub(crate) const SPARE_MONITOR: &str = "qmp2";

/// A kind of VMM.
pub(crate) trait Driver: Sync {
    fn name(&self) -> &'static str;

    fn install(&self) -> &'static str;

    fn can_pause(&self) -> bool;

    /// Locates its program and a kernel. A missing kernel is downloaded if `fetch` is set and that is possible.
    fn find(&self, fetch: bool) -> Result<(PathBuf, Kernel), Missing>;

    /// The kernel modules that its devices need.
    fn modules(&self) -> &'static [&'static str];

    /// The command ports in the guest, as words or a pattern for its shell.
    fn port_files(&self) -> String;

    /// Whether it gives guests a [`Network`](crate::Network).
    fn has_network(&self) -> bool;

    /// Whether its guests can see the machine's files.
    fn has_machine_files(&self) -> bool;

    /// The command that starts a guest. It inherits `folder`'s file `errors` as standard error.
    fn prepare(&self, boot: &Boot<'_>) -> io::Result<Prepared>;
}

/// What a guest is started from.
pub(crate) struct Boot<'a> {
    pub program: &'a Path,
    pub kernel: &'a Kernel,
    pub config: &'a Config,
    /// The folder for its sockets. It has the file `initramfs`, and gets the file `console`.
    pub folder: &'a Path,
}

/// A guest that can be started.
pub(crate) struct Prepared {
    pub command: Command,
    /// Descriptors that the command inherits.
    pub inherited: Vec<OwnedFd>,
    /// Connects to what the command has started.
    pub connect: Connect,
}

pub(crate) type Connect = Box<dyn FnOnce(&Started<'_>) -> Result<Connected, Error> + Send>;

/// A guest that is starting.
pub(crate) struct Started<'a> {
    pub deadline: Instant,
    /// Fails if the VMM has ended.
    pub check: &'a dyn Fn() -> Result<(), Error>,
    /// The error if the VMM ends soon, to which a closed socket is due.
    pub ended_soon: &'a dyn Fn() -> Option<Error>,
}

/// The connections to a guest's VMM.
#[derive(Debug)]
pub(crate) struct Connected {
    /// The command ports.
    pub ports: Vec<UnixStream>,
    /// The guest's ports that are forwarded from the host, each with the host's.
    pub forwarded: Vec<(u16, u16)>,
    pub control: Box<dyn Control>,
}

/// What a VMM can do with a running guest.
pub(crate) trait Control: Debug + Send + Sync {
    fn name(&self) -> &'static str;

    fn pause(&self) -> Result<(), Error> {
        Err(self.unsupported("a pause by the VMM"))
    }

    fn resume(&self) -> Result<(), Error> {
        Err(self.unsupported("a pause by the VMM"))
    }

    fn reset(&self) -> Result<(), Error> {
        Err(self.unsupported("a reset by the VMM"))
    }

    /// Exchanges the vsock device for a new one that connects to `socket`.
    fn replug_vsock(&self, _socket: &Path) -> Result<(), Error> {
        Err(self.unsupported("an exchange of the device"))
    }

    /// Switches the guest off. Returns `false` if the guest itself must do it.
    fn quit(&self) -> Result<bool, Error> {
        Ok(false)
    }

    /// Executes a command of QEMU's monitor.
    fn monitor(&self, _command: &str, _arguments: &Value) -> Result<Value, Error> {
        Err(self.unsupported("a command of QEMU's monitor"))
    }

    fn unsupported(&self, what: &'static str) -> Error {
        let vmm = self.name();
        Error::Unsupported { what, vmm }
    }
}
