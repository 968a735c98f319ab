//! The configuration of a guest.

use std::path::PathBuf;
use std::time::Duration;

use crate::file::File;

/// Number of command ports of a guest, and so of concurrent commands.
pub(crate) const PORTS: usize = 8;

/// The configuration of a guest.
#[derive(Debug, Clone)]
pub struct Config {
    /// Host name, also used in messages.
    pub name: String,
    /// Memory in MiB, by default 256. Raised if the files, which are in memory, need more.
    pub memory_mib: u32,
    /// Number of processors, by default 1.
    pub processors: u32,
    /// Whether its kernel connects to a host by vsock, or is the host of virtual machines.
    pub role: Role,
    /// The vsock device, if any.
    pub vsock: Option<Vsock>,
    /// The network, if any.
    pub network: Option<Network>,
    /// Whether container runtimes work in it: its root file system is a mount that can be pivoted away from,
    /// and `/sys/fs/cgroup` is mounted.
    pub containers: bool,
    /// Whether [`Guest::systemd`](crate::Guest::systemd) can start the machine's systemd in it: only in User-mode
    /// Linux. The same as for `containers` is done, and changes to the machine's files take the guest's memory.
    pub systemd: bool,
    /// Files in addition to busybox.
    pub files: Vec<File>,
    /// The accelerator; if `None`, that of `HVSOCK_GUEST_ACCEL` (`kvm` or `tcg`), else TCG.
    pub accelerator: Option<Accelerator>,
    /// Parent of the guest's temporary folder; if `None`, the system's.
    pub folder: Option<PathBuf>,
    /// Time limit of a boot.
    pub boot_limit: Duration,
}

impl Config {
    /// A guest with busybox only.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            memory_mib: 256,
            processors: 1,
            role: Role::Guest,
            vsock: None,
            network: None,
            containers: false,
            systemd: false,
            files: Vec::new(),
            accelerator: None,
            folder: None,
            // About fifteen times the boot time on an idle machine.
            boot_limit: Duration::from_secs(90),
        }
    }
}

/// The part that a guest's kernel plays for vsock, which decides about the modules that it loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A guest, with the transport of virtio-vsock.
    Guest,
    /// A host of virtual machines: `/dev/vhost-vsock` and the loopback of `AF_VSOCK`, without a transport to
    /// a host above it.
    Host,
}

/// A vhost-user-vsock device. The back-end provides the guest's CID.
#[derive(Debug, Clone)]
pub struct Vsock {
    /// The socket that the back-end listens on.
    pub socket: PathBuf,
}

/// QEMU's user network: the guest is 10.0.2.15, and the host's loopback is 10.0.2.2.
#[derive(Debug, Clone, Default)]
pub struct Network {
    /// TCP ports of the guest that are forwarded from the host's loopback;
    /// [`Guest::forwarded`](crate::Guest::forwarded) returns the host's port.
    pub forwarded: Vec<u16>,
}

/// QEMU's accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// Translation by QEMU. Works everywhere.
    Tcg,
    /// Hardware virtualization. Requires access to `/dev/kvm`.
    Kvm,
}

impl Accelerator {
    pub(crate) fn chosen(config: &Config) -> Self {
        let variable = std::env::var("HVSOCK_GUEST_ACCEL");
        let from_environment = match variable.as_deref() {
            Ok("kvm") => Self::Kvm,
            _ => Self::Tcg,
        };
        config.accelerator.unwrap_or(from_environment)
    }

    pub(crate) fn arguments(self) -> [&'static str; 4] {
        match self {
            // With cmpxchg16b, boots of Linux 6.12 end in a double fault now and then.
            Self::Tcg => ["-accel", "tcg", "-cpu", "max,-cx16"],
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
        }
    }
}
