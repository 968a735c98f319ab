//! What a connect must have in common with an earlier one to be made in the same arena: everything by which
//! the broker judges it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use hvsock_sys::identity::Identity;

use crate::backend::{Request, RequestKind, Settings};
use crate::{Endpoint, HvAddr};

/// The owned form.
#[derive(Debug)]
pub(super) struct Key {
    path: Box<Path>,
    socket: Socket,
    identity: Identity,
    address: HvAddr,
    settings: Settings,
}

/// The form for a lookup.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyRef<'a> {
    path: &'a Path,
    socket: Socket,
    identity: Identity,
    address: &'a HvAddr,
    settings: Settings,
}

/// The endpoint socket at a path. That of a broker that was started again is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Socket {
    device: u64,
    inode: u64,
    /// An inode number may be used again.
    created: (i64, i64),
}

impl<'a> KeyRef<'a> {
    /// The key of a connect. `None` if it is no connect that can be made in an arena, or if there is no
    /// endpoint socket.
    pub(super) fn new(endpoint: &'a Endpoint, request: &'a Request) -> Option<Self> {
        let is_connect = matches!(request.kind, RequestKind::Connect { .. });
        let is_special = request.flags.raw_fd
            || request.flags.dry_run
            || request.settings.descriptor_only
            || request.settings.own_memory
            || request.description.is_some();
        if !is_connect || is_special {
            return None;
        }
        let (path, found) = endpoint.paths().iter().find_map(|path| {
            let found = fs::metadata(path).ok()?;
            Some((path, found))
        })?;
        Some(Self {
            path,
            socket: Socket {
                device: found.dev(),
                inode: found.ino(),
                created: (found.ctime(), found.ctime_nsec()),
            },
            identity: Identity::now(),
            address: &request.address,
            settings: request.settings,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.identity.pid
    }

    pub(super) fn to_key(self) -> Key {
        Key {
            path: self.path.into(),
            socket: self.socket,
            identity: self.identity,
            address: self.address.clone(),
            settings: self.settings,
        }
    }
}

impl Key {
    pub(super) fn is(&self, other: &KeyRef<'_>) -> bool {
        self.socket == other.socket
            && self.identity == other.identity
            && self.settings == other.settings
            && self.address == *other.address
            && *self.path == *other.path
    }
}
