//! Memory of the program, which may be no memory at all: copies go through the kernel, which reports what a
//! system call would (`EFAULT`).

use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU64;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::descriptor;
use super::errno::last_error;

/// The most bytes of one copy: addresses and options are shorter.
pub const MOST: usize = 128;

/// Copies from the program's memory into `bytes`, of at most [`MOST`] bytes.
pub fn read(address: *const c_void, bytes: &mut [u8]) -> Result<(), Errno> {
    if bytes.is_empty() {
        return Ok(());
    }
    let own = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let theirs = libc::iovec {
        iov_base: address.cast_mut(),
        iov_len: bytes.len(),
    };
    // SAFETY: `own` is valid for writes of its length. The kernel checks the other address, which is in this
    // process; another thread that changes it meanwhile changes bytes only.
    let copied = unsafe {
        libc::process_vm_readv(libc::getpid(), &raw const own, 1, &raw const theirs, 1, 0)
    };
    match is_complete(copied, bytes.len()) {
        Err(Errno::PERM | Errno::NOSYS) => {}
        result => return result,
    }
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: the kernel checks the address that it reads from.
    let copied = unsafe { libc::write(descriptor::number(&writer), address, bytes.len()) };
    is_complete(copied, bytes.len())?;
    // Fewer bytes than a page are one write, and one read.
    let read = rustix::io::read(&reader, bytes)?;
    (read == own.iov_len).then_some(()).ok_or(Errno::FAULT)
}

/// Copies `bytes`, at most [`MOST`] of them, into the program's memory.
pub fn write(address: *mut c_void, bytes: &[u8]) -> Result<(), Errno> {
    if bytes.is_empty() {
        return Ok(());
    }
    let own = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let theirs = libc::iovec {
        iov_base: address,
        iov_len: bytes.len(),
    };
    // SAFETY: `own` is only read from. The kernel checks the other address, which the program gave to be written
    // to, as it does in the system call that this one is for.
    let copied = unsafe {
        libc::process_vm_writev(libc::getpid(), &raw const own, 1, &raw const theirs, 1, 0)
    };
    match is_complete(copied, bytes.len()) {
        Err(Errno::PERM | Errno::NOSYS) => {}
        result => return result,
    }
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::write(&writer, bytes)?;
    // SAFETY: as above, by a read into the program's memory.
    let copied = unsafe { libc::read(descriptor::number(&reader), address, bytes.len()) };
    is_complete(copied, bytes.len())
}

/// Whether a call copied all bytes.
fn is_complete(copied: libc::ssize_t, len: usize) -> Result<(), Errno> {
    match usize::try_from(copied) {
        Ok(copied) if copied == len => Ok(()),
        Ok(_) => Err(Errno::FAULT),
        Err(_) => Err(last_error()),
    }
}

/// Whether the program's text is exactly this path. Compares no byte after the first other one.
pub fn is_path(text: *const c_char, path: &CStr) -> bool {
    if text.is_null() {
        return false;
    }
    // SAFETY: `open` takes a C string, and the comparison ends at its end at the latest.
    let order: c_int = unsafe { libc::strcmp(text, path.as_ptr()) };
    order == 0
}

/// Maps `len` bytes that this process shares with those that it forks, and with all that map the same file, if
/// there is one. They are never unmapped.
pub fn share(file: Option<BorrowedFd<'_>>, len: usize) -> Result<&'static [AtomicU64], Errno> {
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: a new mapping at an address that the kernel chooses.
    let address = unsafe {
        match file {
            Some(file) => rustix::mm::mmap(std::ptr::null_mut(), len, protection, flags, file, 0)?,
            None => rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, protection, flags)?,
        }
    };
    let words = len / size_of::<AtomicU64>();
    // SAFETY: the mapping has `len` bytes at a page's address, is never unmapped, and is accessed by atomic
    // operations only. Every value is a valid number. The file cannot shrink: its seals are checked.
    Ok(unsafe { std::slice::from_raw_parts(address.cast::<AtomicU64>(), words) })
}
