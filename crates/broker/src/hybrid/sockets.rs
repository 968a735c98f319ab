//! The host's sockets, by which the guest reaches the host's services.
//!
//! A VMM can refuse its guest's connect only if there is no socket. So a socket exists only while the
//! service that it is for can be reached. It is made anew if somebody removes it or replaces its folder.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use hvsock_endpoint::HybridService;
use hvsock_sys::socket_folder::{FileId, SocketFolder};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::trust::Trust;
use crate::backoff::Backoff;

/// The most sockets of one VM. Each takes a descriptor.
pub(super) const MAX_SOCKETS: usize = 1024;

/// The most requests of the guest that the core has not answered. With more, the VMM's connects wait in the
/// backlogs of the host's sockets.
pub(super) const MAX_UNANSWERED: usize = 64;

/// Listen backlog of a socket. The VMM connects on the thread that serves its guest, and may block there, so
/// it is large. The kernel limits it to `net.core.somaxconn`, 4096 unless it was changed.
const BACKLOG: u32 = 4096;

/// When to make a socket again that somebody removed. Whoever removes the folder with all files in it must
/// not find a new one.
const REMOVED_DELAY: Duration = Duration::from_secs(1);

/// The first and the longest wait until a socket that could not be made is tried again.
const RETRY: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];

/// One socket.
#[derive(Debug)]
pub(super) struct HostSocket {
    pub(super) service: HybridService,
    pub(super) listener: OwnedFd,
    pub(super) token: Token,
    pub(super) file: FileId,
}

/// A socket is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Twice;

/// All sockets of one VM.
#[derive(Debug)]
pub(super) struct HostSockets {
    /// The name of the VMM's socket, which begins the names of all.
    base: OsString,
    wanted: BTreeMap<OsString, HybridService>,
    /// How many more are wanted than there may be.
    surplus: usize,
    open: BTreeMap<OsString, HostSocket>,
    retry: Backoff,
    /// Why sockets could not be made that are still to be.
    fault: Option<String>,
}

impl HostSockets {
    pub(super) fn new(base: &OsStr) -> Self {
        Self {
            base: base.to_owned(),
            wanted: BTreeMap::new(),
            surplus: 0,
            open: BTreeMap::new(),
            retry: Backoff::new(RETRY),
            fault: None,
        }
    }

    /// The name of a service's socket.
    pub(super) fn name_of(&self, service: HybridService) -> OsString {
        let mut name = self.base.clone();
        name.push(service.suffix());
        name
    }

    /// Sets for which services there are to be sockets.
    pub(super) fn want(&mut self, services: impl IntoIterator<Item = HybridService>) {
        let named = services.into_iter();
        let mut wanted: BTreeMap<_, _> = named.map(|one| (self.name_of(one), one)).collect();
        self.surplus = wanted.len().saturating_sub(MAX_SOCKETS);
        if self.surplus > 0 {
            // Those that exist stay: which ones have a socket must not change with each new service.
            let mut left = MAX_SOCKETS - wanted.keys().filter(|name| self.is_open(name)).count();
            let open = &self.open;
            wanted.retain(|name, _| {
                let keep = open.contains_key(name) || left > 0;
                left -= usize::from(keep && !open.contains_key(name));
                keep
            });
        }
        self.wanted = wanted;
        // A socket that another process has, or that was removed, does not delay the others.
        self.retry.now();
    }

    /// The services for which there are to be sockets, and how many more are wanted than there may be.
    pub(super) fn wanted(&self) -> (impl Iterator<Item = HybridService>, usize) {
        (self.wanted.values().copied(), self.surplus)
    }

    /// All sockets, in the order of their names.
    pub(super) fn iter(&self) -> impl Iterator<Item = &HostSocket> {
        self.open.values()
    }

    /// Sets what another process wanted, as [`wanted`](Self::wanted) returned it there.
    pub(super) fn resume_wanted(
        &mut self,
        services: impl IntoIterator<Item = HybridService>,
        surplus: usize,
    ) {
        self.want(services);
        self.surplus = surplus;
    }

    /// Adds a socket that another process has made. Returns its name.
    pub(super) fn resume(&mut self, socket: HostSocket) -> Result<OsString, Twice> {
        let name = self.name_of(socket.service);
        if self.open.contains_key(&name) {
            return Err(Twice);
        }
        self.open.insert(name.clone(), socket);
        Ok(name)
    }

    /// Whether a file of this name matters: it is one of the host's sockets.
    pub(super) fn is_wanted(&self, name: &OsStr) -> bool {
        self.wanted.contains_key(name)
    }

    /// Whether the broker listens at this name.
    pub(super) fn is_open(&self, name: &OsStr) -> bool {
        self.open.contains_key(name)
    }

    /// The socket with this name.
    pub(super) fn get(&self, name: &OsStr) -> Option<&HostSocket> {
        self.open.get(name)
    }

    /// When to call [`update`](Self::update), if ever.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry.at()
    }

    /// Closes the sockets that nobody wants and makes those that are missing. Registers new ones at
    /// `registry` with the tokens of `token`. Returns the tokens and names of the new ones.
    pub(super) fn update(
        &mut self,
        folder: &SocketFolder,
        trust: Trust,
        registry: &Registry,
        mut token: impl FnMut() -> Token,
        now: Instant,
    ) -> Vec<(Token, OsString)> {
        let (wanted, mut removed) = (&self.wanted, false);
        self.open.retain(|name, socket| {
            if !wanted.contains_key(name) {
                // Before the listener closes, so that nobody takes the socket for a stale one.
                let _ = folder.remove(name, socket.file);
                return false;
            }
            let is_there = folder.find(name).is_ok_and(|file| file == socket.file);
            removed |= !is_there;
            is_there
        });
        if removed {
            self.retry.no_earlier_than(now + REMOVED_DELAY);
        }
        if !self.retry.is_due(now) {
            return Vec::new();
        }
        let (mut opened, mut faults) = (Vec::new(), Vec::new());
        for (name, service) in &self.wanted {
            if self.open.contains_key(name) {
                continue;
            }
            match listen(folder, name, trust) {
                Ok((listener, file)) => {
                    let token = token();
                    let mut source = SourceFd(&listener.as_raw_fd());
                    if let Err(error) = registry.register(&mut source, token, Interest::READABLE) {
                        let _ = folder.remove(name, file);
                        faults.push((name, error));
                        continue;
                    }
                    let socket = HostSocket {
                        service: *service,
                        listener,
                        token,
                        file,
                    };
                    self.open.insert(name.clone(), socket);
                    opened.push((token, name.clone()));
                }
                Err(error) => faults.push((name, error)),
            }
        }
        let Some((name, error)) = faults.first() else {
            self.retry.reset();
            self.fault = None;
            return opened;
        };
        let name = name.to_string_lossy();
        let more = match faults.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        self.fault = Some(format!("cannot listen at {name}: {error}{more}"));
        self.retry.failed(now);
        opened
    }

    /// Why there are not all sockets that are wanted.
    pub(super) fn fault(&self) -> Option<String> {
        let surplus = match self.surplus {
            0 => None,
            count => Some(format!(
                "{count} services have no socket, because a VM has at most {MAX_SOCKETS}"
            )),
        };
        let faults = [self.fault.clone(), surplus];
        let faults: Vec<String> = faults.into_iter().flatten().collect();
        (!faults.is_empty()).then(|| faults.join("; "))
    }

    /// Closes all sockets, and removes those that are in `folder`.
    pub(super) fn close(&mut self, folder: Option<&SocketFolder>) {
        for (name, socket) in std::mem::take(&mut self.open) {
            if let Some(folder) = folder {
                let _ = folder.remove(&name, socket.file);
            }
        }
        self.retry.now();
    }
}

/// Listens at a name. Replaces a socket that an earlier broker has left.
fn listen(folder: &SocketFolder, name: &OsStr, trust: Trust) -> io::Result<(OwnedFd, FileId)> {
    let listen = || folder.listen(name, 0o600, trust.owner(), BACKLOG);
    match listen() {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            folder.remove_stale(name, |uid| trust.allows(uid))?;
            listen()
        }
        result => result,
    }
}
