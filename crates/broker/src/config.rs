//! What a broker is started with, and why it may not start.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hvsock_address::PartitionName;
use hvsock_endpoint::Dirs;
use hvsock_fabric::{Limits, RegisterError};
use hvsock_registry::Registration;
use hvsock_registry::folder::FolderError;
use hvsock_registry::store::StoreError;

/// What a broker is started with.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// Where its sockets and its configuration are.
    pub dirs: Dirs,
    /// The name of its own partition.
    pub partition: PartitionName,
    /// How much of everything there may be.
    pub limits: Limits,
    /// How many threads move data; by default one for each processor, four at the most.
    pub data_threads: usize,
    /// How long a process may hold an endpoint connection without saying what it wants.
    pub idle_timeout: Duration,
    /// How many such processes one partition may have at once.
    pub idle_sessions: usize,
    /// Whether two processes that can share memory may do so. Without it the broker moves the
    /// bytes of every connection itself, and a cut or a pause needs nobody's consent.
    pub shared_memory: bool,
    /// Whether to serve the control API.
    pub control: bool,
    /// Registrations that hold while they have no file in the folder of services, such as those
    /// of integration services. An operator may change them and not unregister them.
    pub built_in: Vec<Registration>,
}

impl BrokerConfig {
    /// The defaults, in `dirs`.
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
            built_in: Vec::new(),
        }
    }
}

/// The machine's name where it makes a partition's name, else `root`.
fn own_name() -> PartitionName {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let short = host.trim().split('.').next().unwrap_or_default();
    match (PartitionName::new(short), PartitionName::new("root")) {
        (Ok(name), _) | (Err(_), Ok(name)) => name,
        (Err(_), Err(_)) => unreachable!("`root` is a partition's name"),
    }
}

/// Why a broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another broker has these folders.
    #[error(
        "another broker{} already serves {}; stop it first, or choose another folder with --dir",
        holder(*pid),
        run.display()
    )]
    Held {
        /// Its process id, where its lock says so.
        pid: Option<u32>,
        /// The folder of its sockets.
        run: PathBuf,
    },
    /// A folder cannot be made or opened, or others could plant files in it.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A socket's path is longer than a Unix socket address holds.
    #[error(
        "the path {} is longer than the 107 bytes that a Unix socket's path may have; choose a \
         shorter folder with --dir",
        .0.display()
    )]
    PathTooLong(PathBuf),
    /// The registrations cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There are more registrations than the limit allows.
    #[error(transparent)]
    Registrations(RegisterError),
    /// The system said no.
    #[error("cannot {what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        error: io::Error,
    },
}

impl StartError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io { what, error }
    }
}

fn holder(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})"))
        .unwrap_or_default()
}
