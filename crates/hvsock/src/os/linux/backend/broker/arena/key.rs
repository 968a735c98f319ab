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

/// Whether a request is a connect that can be made in an arena.
pub(super) fn is_possible(request: &Request) -> bool {
    let is_connect = matches!(request.kind, RequestKind::Connect { .. });
    let is_special = request.flags.raw_fd
        || request.flags.dry_run
        || request.settings.descriptor_only
        || request.settings.own_memory
        || request.description.is_some();
    is_connect && !is_special
}

impl<'a> KeyRef<'a> {
    /// The key of a connect. `None` if it is no connect that can be made in an arena, or if there is no
    /// endpoint socket.
    pub(super) fn new(endpoint: &'a Endpoint, request: &'a Request) -> Option<Self> {
        if !is_possible(request) {
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use hvsock_endpoint::Flags;

    use super::*;
    use crate::ToHvAddr as _;
    use crate::backend::Description;

    fn request(address: &str) -> Request {
        Request {
            address: address.to_hv_addr().unwrap(),
            kind: RequestKind::Connect { timeout_ms: 2000 },
            settings: Settings::default(),
            flags: Flags::default(),
            description: None,
        }
    }

    #[test]
    fn whatever_the_broker_judges_by_makes_another_key() {
        let folder = std::env::temp_dir().join(format!("hvsock-key-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let socket = folder.join("endpoint");
        fs::write(&socket, "").unwrap();
        let endpoint = Endpoint::at(&*socket);
        let usual = request("hvsock://parent/web");
        let key = KeyRef::new(&endpoint, &usual).unwrap().to_key();
        assert!(key.is(&KeyRef::new(&endpoint, &usual).unwrap()));

        // Another service, partition or setting.
        let mut others = vec![
            request("hvsock://parent/other"),
            request("hvsock://web/web"),
        ];
        let settings: [fn(&mut Settings); 4] = [
            |settings| settings.container_passthru = true,
            |settings| settings.connected_suspend = true,
            |settings| settings.high_vtl = true,
            |settings| settings.ring_size = 4096,
        ];
        for change in settings {
            let mut other = usual.clone();
            change(&mut other.settings);
            others.push(other);
        }
        for other in &others {
            assert!(
                !key.is(&KeyRef::new(&endpoint, other).unwrap()),
                "{other:?}"
            );
        }
        // Another process or user.
        let identities: [fn(&mut Identity); 3] = [
            |identity| identity.pid += 1,
            |identity| identity.uid += 1,
            |identity| identity.gid += 1,
        ];
        for change in identities {
            let mut other = KeyRef::new(&endpoint, &usual).unwrap();
            change(&mut other.identity);
            assert!(!key.is(&other), "{other:?}");
        }
        // Another endpoint, also one at the same path.
        let none = Endpoint::at(folder.join("none"));
        assert!(KeyRef::new(&none, &usual).is_none());
        let tried = [folder.join("none"), socket.clone()];
        assert!(key.is(&KeyRef::new(&paths(&tried), &usual).unwrap()));
        fs::remove_file(&socket).unwrap();
        fs::write(folder.join("keeps-the-inode-in-use"), "").unwrap();
        fs::write(&socket, "").unwrap();
        assert!(!key.is(&KeyRef::new(&endpoint, &usual).unwrap()));
        fs::remove_dir_all(&folder).unwrap();
    }

    /// An endpoint with several paths.
    fn paths(paths: &[PathBuf]) -> Endpoint {
        Endpoint::with_paths(paths.to_vec())
    }

    #[test]
    fn a_connect_with_a_purpose_of_its_own_is_in_no_arena() {
        let endpoint = Endpoint::at("/");
        let usual = request("hvsock://parent/web");
        assert!(KeyRef::new(&endpoint, &usual).is_some());
        let changes: [fn(&mut Request); 6] = [
            |request| request.kind = RequestKind::Listen { backlog: 1 },
            |request| request.flags.raw_fd = true,
            |request| request.flags.dry_run = true,
            |request| request.settings.descriptor_only = true,
            |request| request.settings.own_memory = true,
            |request| {
                let (action, detail) = ("exec".into(), "true".into());
                request.description = Some(std::sync::Arc::new(Description { action, detail }));
            },
        ];
        for change in changes {
            let mut other = usual.clone();
            change(&mut other);
            assert!(KeyRef::new(&endpoint, &other).is_none(), "{other:?}");
        }
        let mut explained = usual;
        explained.flags.explain = true;
        assert!(KeyRef::new(&endpoint, &explained).is_some());
    }
}
