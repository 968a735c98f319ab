//! The kind of this machine, as far as it matters to `AF_VSOCK`.

use std::path::Path;

use hvsock_address::SockAddrVm;
use hvsock_sys::vsock;

/// The vsock transport of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    /// A virtual machine, with its context id if the kernel reports one.
    Guest { cid: Option<u32> },
    /// A virtual machine on Hyper-V, whose transport has GUIDs of the vsock template only.
    HyperV,
    /// The host of virtual machines.
    Host,
    /// A machine without a vsock transport.
    NoTransport,
}

/// The folder of Hyper-V's bus between host and guest.
const VMBUS: &str = "/sys/bus/vmbus";

impl Machine {
    pub(super) fn detect() -> Self {
        Self::of(vsock::local_cid().ok(), Path::new(VMBUS).exists())
    }

    /// Derives the kind from the local context id, which Hyper-V's transport does not report.
    fn of(cid: Option<u32>, vmbus: bool) -> Self {
        match cid {
            Some(SockAddrVm::CID_HOST) => Self::Host,
            None | Some(SockAddrVm::CID_ANY) if vmbus => Self::HyperV,
            None => Self::Guest { cid: None },
            Some(0 | SockAddrVm::CID_LOCAL | SockAddrVm::CID_ANY) => Self::NoTransport,
            Some(cid) => Self::Guest { cid: Some(cid) },
        }
    }

    /// Returns true if this is a virtual machine, which has a parent.
    pub(super) fn is_guest(self) -> bool {
        matches!(self, Self::Guest { .. } | Self::HyperV)
    }

    /// Returns true if `cid` is this machine.
    pub(super) fn is_local_cid(self, cid: u32) -> bool {
        cid == SockAddrVm::CID_LOCAL || self == Self::Guest { cid: Some(cid) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_id_distinguishes_a_guest_from_a_host() {
        let guest = Machine::Guest { cid: Some(42) };
        assert_eq!(Machine::of(Some(42), false), guest);
        // Also on Hyper-V, if a virtio device has been added.
        assert_eq!(Machine::of(Some(42), true), guest);
        assert_eq!(Machine::of(Some(2), false), Machine::Host);
        assert_eq!(Machine::of(Some(u32::MAX), true), Machine::HyperV);
        assert_eq!(Machine::of(Some(u32::MAX), false), Machine::NoTransport);
        assert_eq!(Machine::of(None, true), Machine::HyperV);
        assert_eq!(Machine::of(None, false), Machine::Guest { cid: None });
        assert!(guest.is_local_cid(42) && guest.is_local_cid(1) && !guest.is_local_cid(43));
        assert!(!Machine::Guest { cid: None }.is_local_cid(42));
    }
}
