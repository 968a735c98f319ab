//! What kind of machine this is, as far as `AF_VSOCK` is concerned.

use std::path::Path;

use hvsock_address::SockAddrVm;
use hvsock_sys::vsock;

/// Where `AF_VSOCK` leads from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    /// A virtual machine, with its context id where that can be asked for.
    Guest { cid: Option<u32> },
    /// A virtual machine on Hyper-V, whose transport carries GUIDs on the vsock template only.
    HyperV,
    /// The host of virtual machines.
    Host,
    /// A machine that no transport connects with another one.
    NoTransport,
}

/// Linux lists here what hangs on Hyper-V's bus between host and guest.
const VMBUS: &str = "/sys/bus/vmbus";

impl Machine {
    pub(super) fn detect() -> Self {
        Self::of(vsock::local_cid().ok(), Path::new(VMBUS).exists())
    }

    /// Hyper-V's own transport, unlike all others, gives the machine no context id.
    fn of(cid: Option<u32>, vmbus: bool) -> Self {
        match cid {
            Some(SockAddrVm::CID_HOST) => Self::Host,
            None | Some(SockAddrVm::CID_ANY) if vmbus => Self::HyperV,
            None => Self::Guest { cid: None },
            Some(0 | SockAddrVm::CID_LOCAL | SockAddrVm::CID_ANY) => Self::NoTransport,
            Some(cid) => Self::Guest { cid: Some(cid) },
        }
    }

    /// Whether it is a virtual machine, with a parent to reach.
    pub(super) fn is_guest(self) -> bool {
        matches!(self, Self::Guest { .. } | Self::HyperV)
    }

    /// Whether `cid` is this machine itself.
    pub(super) fn is_local_cid(self, cid: u32) -> bool {
        cid == SockAddrVm::CID_LOCAL || self == Self::Guest { cid: Some(cid) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_id_tells_a_guest_from_a_host() {
        let guest = Machine::Guest { cid: Some(42) };
        assert_eq!(Machine::of(Some(42), false), guest);
        // On Hyper-V too, where a virtio device has been added.
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
