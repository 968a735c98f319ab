//! The state of a link as a value. [`crate::handover::snapshot`] describes its format.
//!
//! Connects that the guest has not answered are not in it: the core makes them anew. Established connections are
//! the relay's.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use hvsock_control::HybridStyle;
use hvsock_endpoint::HybridService;
use hvsock_fabric::PartitionState;
use hvsock_sys::socket_folder::{FileId, SocketFolder};
use mio::unix::SourceFd;
use mio::{Interest, Token};
use serde::{Deserialize, Serialize};

use super::super::presence::Presence;
use super::super::sockets::{HostSocket, MAX_SOCKETS};
use super::{Source, VMM, WATCH, Worker};
use crate::handover::snapshot::{check_limit, check_version, ensure, read_version};
use crate::handover::{Exports, FdIndex, HandoverError, Imports};

/// The version of [`HybridSnapshot`] that this release writes.
const HYBRID_SNAPSHOT_VERSION: u32 = 1;

/// A link to a VMM with sockets.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::hybrid) struct HybridSnapshot {
    #[serde(deserialize_with = "read_version::<_, HYBRID_SNAPSHOT_VERSION>")]
    version: u32,
    style: HybridStyle,
    /// That of the VMM's socket.
    path: PathBuf,
    state: StateSnapshot,
    /// The VMM's socket at which somebody listens.
    #[serde(default)]
    vmm_socket: Option<FileSnapshot>,
    /// The VMM's process.
    #[serde(default)]
    vmm: Option<FdIndex>,
    /// The folder of the sockets.
    #[serde(default)]
    folder: Option<FdIndex>,
    /// The services for which there are to be sockets, and how many more are wanted than there may be.
    wanted: Vec<String>,
    #[serde(default)]
    surplus: usize,
    /// The sockets of the host, which listen.
    sockets: Vec<SocketSnapshot>,
    /// What an operator was told.
    #[serde(default)]
    problem: Option<String>,
    next_request: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct SocketSnapshot {
    service: String,
    listener: FdIndex,
    file: FileSnapshot,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct FileSnapshot {
    device: u64,
    inode: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StateSnapshot {
    Defined,
    Unknown,
    Running,
    Off,
}

impl From<FileId> for FileSnapshot {
    fn from(file: FileId) -> Self {
        Self {
            device: file.device(),
            inode: file.inode(),
        }
    }
}

impl From<FileSnapshot> for FileId {
    fn from(file: FileSnapshot) -> Self {
        Self::new(file.device, file.inode)
    }
}

impl Worker {
    /// The state of the thread while it is frozen.
    ///
    /// # Errors
    ///
    /// If a request of the guest is not answered, or a descriptor cannot be passed on.
    pub(in crate::hybrid) fn snapshot(
        &self,
        style: HybridStyle,
        exports: &mut Exports,
    ) -> Result<HybridSnapshot, HandoverError> {
        let Self {
            place,
            style: _,
            trust: _,
            poll: _,
            waker: _,
            commands: _,
            events: _,
            state: _,
            presence,
            folder,
            // What it would have reported is looked at anyway.
            watch: _,
            // The VMM closes it.
            probe: _,
            vmm,
            sockets,
            // The core makes these connects anew.
            attempts: _,
            timers: _,
            sources: _,
            next_token: _,
            next_request,
            unanswered,
            // Who waits to be accepted stays in the queue of a socket.
            waiting: _,
            accept_at: _,
            check: _,
            vmm_retry: _,
            problems,
            faults: _,
        } = self;
        let what = "a connect of the guest is not answered";
        ensure(unanswered.is_empty(), what)?;
        let mut all = Vec::new();
        for socket in sockets.iter() {
            all.push(SocketSnapshot {
                service: socket.service.to_string(),
                listener: exports.fd(&socket.listener)?,
                file: socket.file.into(),
            });
        }
        let (wanted, surplus) = sockets.wanted();
        Ok(HybridSnapshot {
            version: HYBRID_SNAPSHOT_VERSION,
            style,
            path: place.folder.join(&place.name),
            state: match presence.state() {
                PartitionState::Running => StateSnapshot::Running,
                PartitionState::Defined => StateSnapshot::Defined,
                PartitionState::Off => StateSnapshot::Off,
                _ => StateSnapshot::Unknown,
            },
            vmm_socket: presence.socket().map(Into::into),
            vmm: vmm.as_ref().map(|vmm| exports.fd(vmm)).transpose()?,
            folder: folder
                .as_ref()
                .map(|folder| exports.fd(folder))
                .transpose()?,
            wanted: wanted.map(|service| service.to_string()).collect(),
            surplus,
            sockets: all,
            problem: problems.reported.clone(),
            next_request: *next_request,
        })
    }

    /// Puts a state in the place of that of a thread that has not begun. Touches no file, and accepts nothing.
    ///
    /// # Errors
    ///
    /// If the state is damaged, or that of a link with other settings than these.
    pub(in crate::hybrid) fn restore(
        &mut self,
        snapshot: HybridSnapshot,
        (own_style, own_path): (HybridStyle, &Path),
        imports: &mut Imports,
    ) -> Result<(), HandoverError> {
        let HybridSnapshot {
            version,
            style,
            path,
            state,
            vmm_socket,
            vmm,
            folder,
            wanted,
            surplus,
            sockets,
            problem,
            next_request,
        } = snapshot;
        check_version(version, HYBRID_SNAPSHOT_VERSION)?;
        let is_own = style == own_style && path == own_path;
        ensure(is_own, "the link is one of another VMM's socket")?;
        check_limit("sockets of a VM", wanted.len(), MAX_SOCKETS)?;
        check_limit("sockets of a VM", sockets.len(), MAX_SOCKETS)?;
        let is_inside = folder.is_some() || sockets.is_empty();
        ensure(is_inside, "there are sockets without their folder")?;
        let state = match state {
            StateSnapshot::Defined => PartitionState::Defined,
            StateSnapshot::Unknown => PartitionState::Unknown,
            StateSnapshot::Running => PartitionState::Running,
            StateSnapshot::Off => PartitionState::Off,
        };
        let known = Presence::known(self.style.connects, state, vmm_socket.map(Into::into));
        let impossible = || HandoverError::inconsistent("a VM is in a state that it cannot have");
        self.presence = known.ok_or_else(impossible)?;
        self.state.set(state);
        if let Some(folder) = folder {
            self.resume_folder(imports.fd(folder)?)?;
        }
        if let Some(vmm) = vmm {
            let vmm = imports.fd(vmm)?;
            self.watch_descriptor(&vmm, VMM)?;
            self.vmm = Some(vmm);
        }
        let wanted: Result<Vec<_>, _> = wanted.iter().map(|text| service(text)).collect();
        self.sockets.resume_wanted(wanted?, surplus);
        for socket in sockets {
            self.resume_socket(socket, imports)?;
        }
        self.problems.reported = problem;
        self.next_request = next_request;
        Ok(())
    }

    fn resume_folder(&mut self, folder: std::os::fd::OwnedFd) -> Result<(), HandoverError> {
        let folder = SocketFolder::from_descriptor(folder);
        let folder = folder.map_err(HandoverError::io("use the folder of a VMM's socket"))?;
        // Without it, the folder is looked at more often.
        self.watch = folder.watch().ok();
        if let Some(watch) = &self.watch {
            self.watch_descriptor(watch, WATCH)?;
        }
        self.folder = Some(folder);
        Ok(())
    }

    fn resume_socket(
        &mut self,
        socket: SocketSnapshot,
        imports: &mut Imports,
    ) -> Result<(), HandoverError> {
        let SocketSnapshot {
            service: name,
            listener,
            file,
        } = socket;
        let listener = imports.fd(listener)?;
        let listens = rustix::net::sockopt::socket_acceptconn(&listener);
        ensure(listens == Ok(true), "a socket for a guest does not listen")?;
        let token = Token(self.next_token);
        self.next_token += 1;
        self.watch_descriptor(&listener, token)?;
        let socket = HostSocket {
            service: service(&name)?,
            listener,
            token,
            file: file.into(),
        };
        let added = self.sockets.resume(socket);
        let twice = |_| HandoverError::inconsistent("a service has two sockets for one guest");
        let name = added.map_err(twice)?;
        self.sources.insert(token, Source::HostSocket(name));
        Ok(())
    }

    fn watch_descriptor(&self, descriptor: impl AsFd, token: Token) -> Result<(), HandoverError> {
        let fd = descriptor.as_fd().as_raw_fd();
        let registry = self.poll.registry();
        let watched = registry.register(&mut SourceFd(&fd), token, Interest::READABLE);
        watched.map_err(|error: io::Error| HandoverError::io("watch a VM's descriptor")(error))
    }
}

/// A service by the name that it has in the path of its socket.
fn service(text: &str) -> Result<HybridService, HandoverError> {
    let port = text.parse().map(HybridService::Port);
    port.or_else(|_| text.parse().map(HybridService::Guid))
        .map_err(|_| HandoverError::inconsistent("a service for a guest has no name"))
}
