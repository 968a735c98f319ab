//! The broker's configuration, and the errors of starting it.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hvsock_address::{InvalidName, PartitionName};
use hvsock_endpoint::Dirs;
use hvsock_fabric::{Fix, Limits, Operators, RegisterError};
use hvsock_registry::Registration;
use hvsock_registry::folder::{Distrust, FolderError};
use hvsock_registry::store::StoreError;
use hvsock_sys::locks::Holder;
use hvsock_sys::machine::Machine;

use crate::uplink_client::{KernelTransport, UplinkTransport};
use crate::watchdog::WatchdogConfig;
use crate::{AuditOutput, CdiConfig};

/// The configuration of a [`Broker`](crate::Broker).
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// The folders of its sockets and of its configuration.
    pub dirs: Dirs,
    /// The name of its own partition, the root.
    pub partition: PartitionName,
    /// Limits on partitions, listeners, connections and registrations.
    pub limits: Limits,
    /// Number of data threads, at least 1. The default is one per processor, at most 4.
    pub data_threads: usize,
    /// Idle timeout of an endpoint connection that has not sent its request. The default is 10 s.
    pub idle_timeout: Duration,
    /// Most idle endpoint connections per partition; one more evicts the oldest. The default is 1024.
    pub idle_sessions: usize,
    /// Allows shared-memory rings between two processes (the default). Without it the broker copies
    /// the bytes of every connection between processes, so it can close or suspend one without their
    /// cooperation.
    pub shared_memory: bool,
    /// Serves the control API on its Unix socket (the default).
    pub control: bool,
    /// Where records of the audit are written, besides the broker's memory. The default is its log.
    pub audit: AuditOutput,
    /// Built-in registrations, for example of integration services. A file in the folder of services
    /// overrides what it says of one, and inherits the rest. So does a registration of the same service
    /// that is made in another way. An operator can change them, but not unregister them.
    pub built_in: Vec<Registration>,
    /// Writes a CDI device for each container. None by default.
    pub cdi: Option<CdiConfig>,
    /// The number and name of a group whose members may do what root may: change services, partitions
    /// and connections, and use every service, whatever its rules are. None by default.
    pub operator_group: Option<(u32, String)>,
    /// The soft limit of open descriptors that other processes of the broker's user have: the broker
    /// keeps the number of descriptors in flight well below it (`unix(7)`, `ETOOMANYREFS`). The default
    /// is the limit with which the broker was started.
    pub soft_descriptors: Option<u64>,
    /// Whether this machine is a guest of a host whose broker it has an uplink to. Off by default.
    pub uplink: Uplink,
    /// How to start the program that takes this broker over in an upgrade ([`Handle::upgrade`](crate::Handle::upgrade)).
    /// None by default; then another process can still ask to take over.
    pub successor: Option<Successor>,
    /// Told of handovers of this broker. None by default.
    pub on_handover: Option<OnHandover>,
    /// How threads that hang are found, and who is told that the broker is alive.
    pub watchdog: WatchdogConfig,
}

/// A function that is told of handovers of a broker, on a thread of the broker. It must not block.
#[derive(Clone)]
pub struct OnHandover(pub Arc<dyn Fn(HandoverStage) + Send + Sync>);

/// How far a handover is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandoverStage {
    /// Another process is prepared to take over.
    Begun,
    /// This broker goes on.
    GivenUp,
    /// The process with this number goes on.
    Done(u32),
}

impl std::fmt::Debug for OnHandover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnHandover")
    }
}

/// The program that takes a broker over: as a rule the one that runs it, in a newer version by then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Successor {
    /// The path of the program, which is read at each upgrade.
    pub program: PathBuf,
    /// Its arguments, with which it calls [`Broker::take_over`](crate::Broker::take_over).
    pub args: Vec<OsString>,
    /// More arguments, for a dry run.
    pub dry_run: Vec<OsString>,
}

/// Whether the broker has an uplink to the host of the virtual machine that it runs in.
///
/// With one, its own partition is a [virtual machine](hvsock_fabric::PartitionKind::Vm), and its parent is
/// the host.
#[derive(Clone, Debug, Default)]
pub enum Uplink {
    /// It has none. Also in a virtual machine, its own partition is a host.
    #[default]
    Off,
    /// It has one if this is a virtual machine with a vsock device.
    Auto,
    /// It has one. Starting fails if this is no virtual machine with a vsock device.
    Required,
    /// It has one over another transport than the kernel's `AF_VSOCK`.
    Over(Arc<dyn UplinkTransport>),
}

/// How the host is reached.
pub(crate) struct HostLink {
    pub(crate) transport: Arc<dyn UplinkTransport>,
    /// An operator requires the uplink.
    pub(crate) is_required: bool,
}

impl Uplink {
    /// How the host is reached, if there is to be an uplink.
    pub(crate) fn open(&self) -> Result<Option<HostLink>, StartError> {
        let kernel = |is_required| HostLink {
            transport: Arc::new(KernelTransport),
            is_required,
        };
        let is_guest = Machine::is_certainly_guest;
        match self {
            Self::Off => Ok(None),
            Self::Auto => Ok(is_guest().then(|| kernel(false))),
            Self::Required if is_guest() => Ok(Some(kernel(true))),
            Self::Required => Err(StartError::NoHost),
            Self::Over(transport) => Ok(Some(HostLink {
                transport: Arc::clone(transport),
                is_required: false,
            })),
        }
    }
}

impl BrokerConfig {
    /// The default configuration with the folders `dirs`.
    pub fn new(dirs: Dirs) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            dirs,
            partition: own_name(),
            limits: Limits::default(),
            data_threads: processors.min(4),
            idle_timeout: Duration::from_secs(10),
            idle_sessions: 1024,
            shared_memory: true,
            control: true,
            audit: AuditOutput::default(),
            built_in: Vec::new(),
            cdi: None,
            operator_group: None,
            soft_descriptors: None,
            uplink: Uplink::default(),
            successor: None,
            on_handover: None,
            watchdog: WatchdogConfig::default(),
        }
    }
}

impl BrokerConfig {
    /// Who may change the broker's state.
    pub(crate) fn operators(&self) -> Operators {
        let operators = Operators::of_broker(rustix::process::geteuid().as_raw());
        match &self.operator_group {
            Some((gid, name)) => operators.with_group(*gid, name),
            None => operators,
        }
    }
}

/// The short host name if it is a valid partition name, else `root`.
fn own_name() -> PartitionName {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let short = host.trim().split('.').next().unwrap_or_default();
    match (PartitionName::unnested(short), PartitionName::new("root")) {
        (Ok(name), _) | (Err(_), Ok(name)) => name,
        (Err(_), Err(_)) => unreachable!("`root` is a valid partition name"),
    }
}

/// An error of [`Broker::start`](crate::Broker::start).
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process, as a rule another broker, has locked these folders.
    #[error(
        "{} holds the lock of {}, as a broker that serves it does; stop it first, or choose another folder",
        named(holder.as_deref()),
        run.display()
    )]
    Held {
        /// Its process, if the kernel names it.
        holder: Option<Box<Holder>>,
        /// The folder of the sockets.
        run: PathBuf,
    },
    /// A folder cannot be created or opened, or other users could write to it.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A socket's path is longer than a Unix socket address can hold.
    #[error(
        "the socket path {} is longer than 107 bytes; choose a shorter folder",
        .0.display()
    )]
    PathTooLong(PathBuf),
    /// The broker's own partition cannot have the name of a container in a virtual machine.
    #[error("the broker's own partition cannot have this name: {0}")]
    PartitionName(InvalidName),
    /// The registrations cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store has registrations that clash, or more than [`BrokerConfig::limits`] allows.
    #[error(transparent)]
    Registrations(RegisterError),
    /// An uplink is required, and there is no host to have it to.
    #[error(
        "this machine is no virtual machine with a vsock device, so there is no host for an uplink"
    )]
    NoHost,
    /// A system call failed.
    #[error("cannot {what}: {error}")]
    Io {
        /// The operation that failed, as a verb phrase.
        what: String,
        /// The error that it returned.
        error: io::Error,
    },
}

impl StartError {
    /// What would help, if that is known.
    pub fn fix(&self) -> Option<Fix> {
        match self {
            Self::Held { .. } => Some(Fix::StopOtherBroker),
            Self::PathTooLong(_) => Some(Fix::ChooseFolder),
            Self::Folder(error) => fix_of_folder(error),
            Self::Store(StoreError::Failed(error)) => fix_of_folder(error.downcast_ref()?),
            _ => None,
        }
    }

    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io { what, error }
    }
}

fn fix_of_folder(error: &FolderError) -> Option<Fix> {
    let (path, why) = match error {
        FolderError::Untrusted { path, why } => (path, why),
        // A folder above may be another user's for a reason, and so may a link.
        FolderError::UntrustedParent {
            why: Distrust::Owner { .. },
            ..
        }
        | FolderError::ForeignLink { .. } => return Some(Fix::ChooseFolder),
        FolderError::UntrustedParent { parent, why, .. } => (parent, why),
        FolderError::Io { .. } => return None,
    };
    let path = path.display().to_string();
    Some(match why {
        Distrust::Owner { own, .. } => Fix::TakeOwnership { path, uid: *own },
        Distrust::Group { .. } | Distrust::Everyone => Fix::RestrictWrites { path },
    })
}

fn named(holder: Option<&Holder>) -> String {
    holder.map_or_else(|| "another process".to_owned(), Holder::to_string)
}
