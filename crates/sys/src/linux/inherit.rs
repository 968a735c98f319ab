//! Descriptors that programs inherit.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, RawFd};

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;

/// The first descriptor after the standard streams.
pub(super) const FIRST: RawFd = 3;

/// Sets close-on-exec on all descriptors except the standard streams. For the start of a program that
/// starts others: whoever started it may have left descriptors open, such as a file that only root may
/// read, and no other program must get them.
///
/// # Errors
///
/// Fails if the open descriptors cannot be found: a kernel before Linux 5.11 and no `/proc`.
pub fn close_on_exec() -> io::Result<()> {
    set_close_on_exec()
}

/// As [`close_on_exec`]. Allocates nothing, so that a new process can call it before it executes a program.
pub(super) fn set_close_on_exec() -> io::Result<()> {
    const CLOEXEC: libc::c_uint = 4;
    if close_range(CLOEXEC) {
        return Ok(());
    }
    for_each_descriptor(|fd, _| {
        // SAFETY: numbers only. A descriptor that is closed meanwhile is an error.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    })
}

/// Closes all descriptors except the standard streams. Allocates nothing.
///
/// # Safety
///
/// Nothing in this process may use one of them later, or drop its owner.
pub(super) unsafe fn close_all() {
    if close_range(0) {
        return;
    }
    let _ = for_each_descriptor(|fd, listing| {
        if fd != listing {
            // SAFETY: as the caller promises.
            unsafe { libc::close(fd) };
        }
    });
}

/// Returns false if the kernel lacks the system call or the flag.
fn close_range(flags: libc::c_uint) -> bool {
    let (first, last) = (FIRST.unsigned_abs(), libc::c_uint::MAX);
    // SAFETY: numbers only. With flags 0, the caller is `close_all`.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) == 0 }
}

/// Calls `act` with every descriptor except the standard streams, and with the one of the listing.
fn for_each_descriptor(mut act: impl FnMut(RawFd, RawFd)) -> io::Result<()> {
    numbers_in(c"/proc/self/fd", |fd, listing| {
        if fd >= FIRST {
            act(fd, listing);
        }
    })
    .map_err(Into::into)
}

/// Calls `act` with every number among the names in a folder, and with the descriptor of the folder.
/// Allocates nothing.
pub(super) fn numbers_in(folder: &CStr, mut act: impl FnMut(i32, RawFd)) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&folder, &mut buffer);
    while let Some(entry) = entries.next() {
        if let Some(number) = number(entry?.file_name().to_bytes()) {
            act(number, folder.as_raw_fd());
        }
    }
    Ok(())
}

/// Parses a decimal number.
pub(super) fn number(digits: &[u8]) -> Option<i32> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_i32, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| i32::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

    use super::*;

    #[test]
    fn every_descriptor_after_the_standard_streams_is_found() {
        let file = std::fs::File::open("/proc/self/status").unwrap();
        fcntl_setfd(&file, FdFlags::empty()).unwrap();
        let mut found = Vec::new();
        for_each_descriptor(|fd, _| found.push(fd)).unwrap();
        assert!(found.contains(&file.as_raw_fd()), "{found:?}");
        assert!(found.iter().all(|fd| *fd >= FIRST), "{found:?}");

        close_on_exec().unwrap();
        assert_eq!(fcntl_getfd(file.as_fd()).unwrap(), FdFlags::CLOEXEC);
    }

    #[test]
    fn a_number_has_digits_only_and_fits() {
        assert_eq!(number(b"0"), Some(0));
        assert_eq!(number(b"2147483647"), Some(i32::MAX));
        for text in ["", "2147483648", "-1", "1a", "self"] {
            assert_eq!(number(text.as_bytes()), None, "{text}");
        }
    }
}
