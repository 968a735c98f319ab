//! The settings of a VM, with what the machine knows of them.

use std::path::{Component, PathBuf};

use hvsock_control::{LinkSpec, VmSpec};
use hvsock_virtio::GuestCid;

/// The settings that only VMs have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmEntry {
    /// As an operator gave them, with the CID that the VM has.
    pub(crate) spec: VmSpec,
    pub(crate) cid: Option<GuestCid>,
    /// The user that the VMM runs as, if not the broker's.
    pub(crate) user: Option<VmmUser>,
}

/// The user that a VMM runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmmUser {
    /// The name or number as the operator wrote it.
    pub(crate) name: String,
    pub(crate) uid: u32,
}

/// Among which VMs a CID is unique.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum CidSpace {
    /// Those that the broker gives their CIDs.
    Broker,
    /// Those of the kernel, in one network namespace; `None` for the broker's.
    Kernel(Option<PathBuf>),
}

/// A CID with the VMs among which it is unique.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CidKey {
    pub(crate) space: CidSpace,
    pub(crate) cid: GuestCid,
}

impl VmEntry {
    /// Settings with a given CID. `user` is the one that [`VmmUser::find`] found for `spec`.
    pub(crate) fn new(spec: VmSpec, cid: Option<GuestCid>, user: Option<VmmUser>) -> Self {
        let cid_number = cid.map(GuestCid::get);
        Self {
            spec: VmSpec {
                cid: cid_number,
                ..spec
            },
            cid,
            user,
        }
    }

    /// Its CID, if it has one, and among which VMs it is unique.
    pub(crate) fn cid_key(&self) -> Option<CidKey> {
        let space = cid_space(&self.spec.link)?;
        self.cid.map(|cid| CidKey { space, cid })
    }
}

/// Among which VMs the CID of a VM with this link is unique. `None` if its VMM alone uses the number.
pub(crate) fn cid_space(link: &LinkSpec) -> Option<CidSpace> {
    match link {
        LinkSpec::VhostUser => Some(CidSpace::Broker),
        LinkSpec::Hybrid { .. } => None,
        LinkSpec::Kernel { netns, .. } => Some(CidSpace::Kernel(netns.clone())),
    }
}

/// The path of the VMM's socket of a VM with this link, in the one spelling that it has without symbolic links, which
/// a hybrid link does not follow. Two VMs with one path would be the same guest.
pub(crate) fn hybrid_path(link: &LinkSpec) -> Option<PathBuf> {
    let LinkSpec::Hybrid { path, .. } = link else {
        return None;
    };
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    Some(plain)
}

/// Checks the settings that types alone do not rule out, except for the CID that a vhost-user device
/// may lack until the broker gives it one.
pub(crate) fn check_spec(spec: &VmSpec) -> Result<(), String> {
    let (what, path) = match &spec.link {
        LinkSpec::VhostUser => return Ok(()),
        LinkSpec::Hybrid { path, .. } => ("the path of hybrid sockets", Some(path)),
        LinkSpec::Kernel { netns, .. } => ("the path of a network namespace", netns.as_ref()),
    };
    if spec.unsealed_memory {
        return Err("`unsealed_memory` is for a vhost-user device".into());
    }
    if path.is_some_and(|path| !path.is_absolute()) {
        return Err(format!("{what} must be absolute"));
    }
    match spec.link {
        LinkSpec::Kernel { .. } if spec.cid.is_none() => {
            Err("a kernel link needs the CID that the VMM has given the VM".into())
        }
        LinkSpec::Kernel { .. } if spec.user.is_some() => {
            Err("`user` has no meaning with a kernel link: the kernel names no VMM".into())
        }
        _ => Ok(()),
    }
}

impl VmmUser {
    /// Looks up a user by name or number.
    pub(crate) fn find(name: String) -> Result<Self, String> {
        match hvsock_sys::accounts::uid(&name) {
            Some(uid) => Ok(Self { name, uid }),
            None => Err(format!("this machine has no user `{name}`")),
        }
    }
}
