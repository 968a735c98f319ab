//! Installing a filter on the calling thread.

use std::io;
use std::os::fd::RawFd;

/// Makes this thread, and what it starts, gain no privileges by executing programs, for good.
///
/// # Errors
///
/// Those of `prctl`.
pub fn no_new_privileges() -> io::Result<()> {
    // SAFETY: no memory is involved.
    let done = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Installs the filter with these flags. Returns what `seccomp` does: the listener, if the flags ask for one.
pub(super) fn set_filter(program: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<RawFd> {
    let program = libc::sock_fprog {
        // At most 4096.
        len: u16::try_from(program.len()).unwrap_or(u16::MAX),
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the structure and the instructions that it points to are valid for the call, which only reads
    // them.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match RawFd::try_from(done) {
        Ok(fd @ 0..) => Ok(fd),
        _ => Err(io::Error::last_os_error()),
    }
}
