//! `/dev/vsock`, which programs open to learn their context id.

use std::ffi::{CStr, c_int, c_ulong};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use crate::abi::descriptor;
use crate::partition;

/// The device.
pub const PATH: &CStr = c"/dev/vsock";
/// `IOCTL_VM_SOCKETS_GET_LOCAL_CID` of linux/vm_sockets.h.
pub const GET_LOCAL_CID: c_ulong = 0x7b9;

/// The name of the empty file that stands in for the device, by which `ioctl` knows it again.
const STAND_IN: &str = "hvsock-dev-vsock";

/// Opens the stand-in. `None` if there is no broker: then the device is that of the kernel, or does not exist.
pub fn open(flags: c_int) -> Option<Result<OwnedFd, Errno>> {
    partition::own_cid().ok()?;
    let close_on_exec = match flags & libc::O_CLOEXEC {
        0 => MemfdFlags::empty(),
        _ => MemfdFlags::CLOEXEC,
    };
    Some(rustix::fs::memfd_create(STAND_IN, close_on_exec))
}

/// The context id, if the descriptor is the stand-in.
pub fn local_cid(fd: BorrowedFd<'_>) -> Option<Result<u32, Errno>> {
    let path = format!("/proc/thread-self/fd/{}", descriptor::number(fd));
    let target = std::fs::read_link(path).ok()?;
    let is_stand_in = target
        .to_str()?
        .strip_prefix("/memfd:")?
        .starts_with(STAND_IN);
    is_stand_in.then(partition::own_cid)
}
