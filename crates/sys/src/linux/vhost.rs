//! The kernel's virtio-vsock device for virtual machines, `/dev/vhost-vsock`, as a VMM uses it.
//!
//! The program that opens it plays a VMM: it gives a virtual machine's memory and virtqueues to the
//! kernel, which connects them to `AF_VSOCK` of this machine under a context id. Only the caller's own
//! memory can be given, so that the kernel accesses nothing else.
//!
//! Order of use, as QEMU does it: [`Device::open`], [`Device::set_features`], [`Device::set_memory`],
//! [`Device::set_ring`] for both queues, [`Device::set_guest_cid`], [`Device::set_running`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::FdFlags;

use super::shared_memory::Mapping;

/// The device.
pub const DEVICE: &str = "/dev/vhost-vsock";

/// `VHOST_VIRTIO`: the group of all requests (`linux/vhost.h`).
const GROUP: u64 = 0xaf;
const GET_FEATURES: u64 = number(READ, 0x00, 8);
const SET_FEATURES: u64 = number(WRITE, 0x00, 8);
const SET_OWNER: u64 = number(0, 0x01, 0);
/// Its size is that of a table without regions.
const SET_MEM_TABLE: u64 = number(WRITE, 0x03, 8);
const SET_VRING_NUM: u64 = number(WRITE, 0x10, size_of::<State>());
const SET_VRING_ADDR: u64 = number(WRITE, 0x11, size_of::<Addresses>());
const SET_VRING_BASE: u64 = number(WRITE, 0x12, size_of::<State>());
const GET_VRING_BASE: u64 = number(READ | WRITE, 0x12, size_of::<State>());
const SET_VRING_KICK: u64 = number(WRITE, 0x20, size_of::<State>());
const SET_VRING_CALL: u64 = number(WRITE, 0x21, size_of::<State>());
const SET_GUEST_CID: u64 = number(WRITE, 0x60, 8);
const SET_RUNNING: u64 = number(WRITE, 0x61, 4);

/// The kernel writes, reads the argument (`_IOC_READ`, `_IOC_WRITE`, from the caller's point of view).
const READ: u64 = 2;
const WRITE: u64 = 1;

/// `_IOC`: the number of a request.
const fn number(direction: u64, request: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | GROUP << 8 | request
}

/// Most regions of a memory table (`max_mem_regions`, a parameter of the module, has this default).
const MAX_REGIONS: usize = 64;

/// `vhost_vring_state`, and `vhost_vring_file`, whose second word is a descriptor.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct State {
    index: u32,
    number: u32,
}

/// `vhost_vring_addr`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Addresses {
    index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// A region of the virtual machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address.
    pub guest: u64,
    /// Offset in the mapping.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
}

/// A virtqueue in the mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Its size, a power of two.
    pub size: u16,
    /// The index of the next entry of the available ring.
    pub base: u16,
    /// Offset of the descriptor table.
    pub descriptors: usize,
    /// Offset of the available ring.
    pub available: usize,
    /// Offset of the used ring.
    pub used: usize,
}

/// An opened device. Its end is the end of the virtual machine: the kernel resets its connections.
#[derive(Debug)]
pub struct Device {
    fd: OwnedFd,
    /// The virtual machine's memory, which the kernel accesses until the device is stopped.
    memory: Arc<Mapping>,
}

impl Device {
    /// Opens the device for a virtual machine with this memory, and makes this process its owner.
    ///
    /// # Errors
    ///
    /// `ENOENT` or `ENODEV` without the module `vhost_vsock`; `EACCES`.
    pub fn open(memory: Arc<Mapping>) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let fd = rustix::fs::open(DEVICE, flags, Mode::empty())?;
        let device = Self { fd, memory };
        device.request(SET_OWNER, std::ptr::null_mut::<u8>())?;
        Ok(device)
    }

    /// The virtio features that the kernel offers.
    ///
    /// # Errors
    ///
    /// Those of the request.
    pub fn features(&self) -> io::Result<u64> {
        let mut features = 0_u64;
        self.request(GET_FEATURES, &raw mut features)?;
        Ok(features)
    }

    /// Sets the virtio features that the guest's driver has accepted.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for a feature that the kernel does not offer.
    pub fn set_features(&self, mut features: u64) -> io::Result<()> {
        self.request(SET_FEATURES, &raw mut features)
    }

    /// Tells the kernel where the guest's memory is.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a region outside the mapping, or too many of them; those of the request.
    pub fn set_memory(&self, regions: &[Region]) -> io::Result<()> {
        if regions.len() > MAX_REGIONS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // `vhost_memory`: the count, and four words for each region.
        let mut table = vec![regions.len() as u64];
        for region in regions {
            let address = self.address(region.offset, region.len)?;
            table.extend([region.guest, region.len as u64, address, 0]);
        }
        self.request(SET_MEM_TABLE, table.as_mut_ptr())
    }

    /// Sets up a queue: 0 receives, 1 transmits. The device signals `call` and waits for `kick`, both
    /// eventfds. Only while the device does not run.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the queue is not in the mapping; those of the requests, as `EBUSY` while it runs.
    pub fn set_ring(
        &self,
        index: u32,
        ring: Ring,
        kick: BorrowedFd<'_>,
        call: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let size = usize::from(ring.size);
        self.of_ring(SET_VRING_NUM, index, u32::from(ring.size))?;
        self.of_ring(SET_VRING_BASE, index, u32::from(ring.base))?;
        let mut addresses = Addresses {
            index,
            flags: 0,
            descriptors: self.address(ring.descriptors, 16 * size)?,
            used: self.address(ring.used, 6 + 8 * size)?,
            available: self.address(ring.available, 6 + 2 * size)?,
            log: 0,
        };
        self.request(SET_VRING_ADDR, &raw mut addresses)?;
        let number = |fd: BorrowedFd<'_>| fd.as_raw_fd().cast_unsigned();
        self.of_ring(SET_VRING_CALL, index, number(call))?;
        self.of_ring(SET_VRING_KICK, index, number(kick)).map(drop)
    }

    /// The index of the next entry of a queue's available ring.
    ///
    /// # Errors
    ///
    /// Those of the request.
    pub fn base(&self, index: u32) -> io::Result<u16> {
        let base = self.of_ring(GET_VRING_BASE, index, 0)?;
        u16::try_from(base).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Sets the guest's context id, which is reserved until the device is closed.
    ///
    /// # Errors
    ///
    /// `EADDRINUSE` if another virtual machine has it; `EINVAL` for a reserved one.
    pub fn set_guest_cid(&self, mut cid: u64) -> io::Result<()> {
        self.request(SET_GUEST_CID, &raw mut cid)
    }

    /// Starts or stops the device. A stopped one accesses no memory and keeps its context id and
    /// connections.
    ///
    /// # Errors
    ///
    /// `EFAULT` if a queue was not set up.
    pub fn set_running(&self, running: bool) -> io::Result<()> {
        let mut running = i32::from(running);
        self.request(SET_RUNNING, &raw mut running)
    }

    /// Lets the programs that this process starts inherit the device. The virtual machine then exists
    /// until they have ended, too.
    ///
    /// # Errors
    ///
    /// Those of `fcntl`.
    pub fn set_inheritable(&self) -> io::Result<()> {
        Ok(rustix::io::fcntl_setfd(&self.fd, FdFlags::empty())?)
    }

    /// The address of a range of the mapping.
    fn address(&self, offset: usize, len: usize) -> io::Result<u64> {
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end > self.memory.len()) {
            let text = format!("{len} bytes at {offset} are outside the virtual machine's memory");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(self.memory.start().addr().get() as u64 + offset as u64)
    }

    /// A request about a queue, with a number or a descriptor. Returns the number that the kernel stored.
    fn of_ring(&self, request: u64, index: u32, number: u32) -> io::Result<u32> {
        let mut state = State { index, number };
        self.request(request, &raw mut state)?;
        Ok(state.number)
    }

    fn request<T>(&self, request: u64, argument: *mut T) -> io::Result<()> {
        let fd = self.fd.as_fd().as_raw_fd();
        // SAFETY: every caller passes a pointer to a value of the size that the request's number states,
        // or, for a memory table, that its count states. The memory and the queues that the kernel
        // accesses later are in the mapping: `address` checks that. The kernel stops to access it before
        // this object's reference to the mapping ends: see `drop`.
        let result = unsafe { libc::ioctl(fd, request as libc::Ioctl, argument) };
        match result {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // Another process may have inherited the descriptor, and then closing ours does not stop it. It
        // fails only in a process that is not the owner, and that one has another address space.
        let _ = self.set_running(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_requests_are_those_of_the_kernel() {
        // From the expansion of linux/vhost.h by a C compiler.
        assert_eq!(GET_FEATURES, 0x8008_af00);
        assert_eq!(SET_FEATURES, 0x4008_af00);
        assert_eq!(SET_OWNER, 0x0000_af01);
        assert_eq!(SET_MEM_TABLE, 0x4008_af03);
        assert_eq!(SET_VRING_NUM, 0x4008_af10);
        assert_eq!(SET_VRING_ADDR, 0x4028_af11);
        assert_eq!(SET_VRING_BASE, 0x4008_af12);
        assert_eq!(GET_VRING_BASE, 0xc008_af12);
        assert_eq!(SET_VRING_KICK, 0x4008_af20);
        assert_eq!(SET_VRING_CALL, 0x4008_af21);
        assert_eq!(SET_GUEST_CID, 0x4008_af60);
        assert_eq!(SET_RUNNING, 0x4004_af61);
    }
}
