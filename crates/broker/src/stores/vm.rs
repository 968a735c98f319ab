//! The settings of a VM, with what the machine knows of them.

use hvsock_control::VmSpec;
use hvsock_virtio::GuestCid;

/// The settings that only VMs have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmEntry {
    /// As an operator gave them, with the CID that the VM has.
    pub(crate) spec: VmSpec,
    pub(crate) cid: GuestCid,
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

impl VmEntry {
    /// Settings with a given CID. `user` is the one that [`VmmUser::find`] found for `spec`.
    pub(crate) fn new(spec: VmSpec, cid: GuestCid, user: Option<VmmUser>) -> Self {
        let cid_number = Some(cid.get());
        Self {
            spec: VmSpec {
                cid: cid_number,
                ..spec
            },
            cid,
            user,
        }
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
