//! The kind of this machine, as far as it matters to `AF_VSOCK`.

use std::io;
use std::path::Path;

use rustix::io::Errno;

use super::vsock;

// From linux/vm_sockets.h.
const VMADDR_CID_LOCAL: u32 = 1;
const VMADDR_CID_HOST: u32 = 2;
const VMADDR_CID_ANY: u32 = u32::MAX;

/// The vsock transport of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// A virtual machine, with its context id if the kernel reports one.
    Guest {
        /// Its own.
        cid: Option<u32>,
    },
    /// A virtual machine on Hyper-V, whose transport has GUIDs of the vsock template only.
    HyperV,
    /// The host of virtual machines.
    Host,
    /// A machine without a vsock transport.
    NoTransport,
}

/// The folder of Hyper-V's bus between host and guest.
const VMBUS: &str = "/sys/bus/vmbus";
/// The folder with the virtio-vsock devices that the kernel's driver has. Every user can read it, and the
/// context id only who may open the device.
const VIRTIO_DRIVER: &str = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";

impl Machine {
    /// The kind of this machine. One whose context id cannot be asked for counts as a virtual machine.
    pub fn detect() -> Self {
        Self::of(vsock::local_cid().ok(), Path::new(VMBUS).exists())
    }

    /// Whether this is certainly a virtual machine that has a vsock device.
    pub fn is_certainly_guest() -> bool {
        let (cid, vmbus) = (vsock::local_cid(), Path::new(VMBUS).exists());
        match cid {
            Ok(cid) => Self::of(Some(cid), vmbus).is_guest(),
            Err(error) if is_forbidden(&error) => vmbus || has_device(Path::new(VIRTIO_DRIVER)),
            Err(_) => false,
        }
    }

    /// Derives the kind from the local context id, which Hyper-V's transport does not report.
    fn of(cid: Option<u32>, vmbus: bool) -> Self {
        match cid {
            Some(VMADDR_CID_HOST) => Self::Host,
            None | Some(VMADDR_CID_ANY) if vmbus => Self::HyperV,
            None => Self::Guest { cid: None },
            Some(0 | VMADDR_CID_LOCAL | VMADDR_CID_ANY) => Self::NoTransport,
            Some(cid) => Self::Guest { cid: Some(cid) },
        }
    }

    /// Whether this is a virtual machine, which has a parent.
    pub fn is_guest(self) -> bool {
        matches!(self, Self::Guest { .. } | Self::HyperV)
    }

    /// Whether `cid` is this machine.
    pub fn is_local_cid(self, cid: u32) -> bool {
        cid == VMADDR_CID_LOCAL || self == Self::Guest { cid: Some(cid) }
    }
}

fn is_forbidden(error: &io::Error) -> bool {
    let forbidden = [Errno::ACCESS, Errno::PERM];
    Errno::from_io_error(error).is_some_and(|errno| forbidden.contains(&errno))
}

/// Whether the folder of a driver has a device of its bus.
fn has_device(driver: &Path) -> bool {
    let entries = std::fs::read_dir(driver).into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name());
    names.any(|name| name.to_string_lossy().starts_with("virtio"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_without_a_device_is_no_virtual_machine() {
        let folder = std::env::temp_dir().join(format!("hvsock-driver-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("uevent"), "").unwrap();
        assert!(!has_device(&folder));
        std::fs::write(folder.join("virtio3"), "").unwrap();
        assert!(has_device(&folder));
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(!has_device(&folder));
    }

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
