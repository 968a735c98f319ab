//! Standard streams that were closed when the program was started.
//!
//! Rust's runtime opens `/dev/null` in their place before `main`, for reading and writing. A read then
//! returns an end of file, as if the input were empty, and a write succeeds although nobody gets the
//! bytes. [`fail_if_closed`] makes such a stream fail with `EBADF`, as a closed one does.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// The standard streams that were closed at the start.
static CLOSED: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

/// The dynamic linker or the C library calls it before the runtime's own code in `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static RECORD: extern "C" fn() = record;

extern "C" fn record() {
    for (fd, closed) in (0..).zip(&CLOSED) {
        // SAFETY: a number only. It fails only for a closed descriptor.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        closed.store(flags < 0, Ordering::Relaxed);
    }
}

/// Makes standard streams fail with `EBADF` that were closed when the program was started, here and in
/// the programs that inherit them. To be called first in `main`.
///
/// The descriptors are not free, so that no file that is opened later becomes a standard stream: each is
/// `/dev/null`, opened in the contrary direction.
pub fn fail_if_closed() {
    for (fd, closed) in (0..).zip(&CLOSED) {
        if closed.swap(false, Ordering::Relaxed) && is_null(fd) {
            open_contrary(fd);
        }
    }
}

/// Whether a descriptor is `/dev/null`, as the runtime opens it.
fn is_null(fd: RawFd) -> bool {
    // SAFETY: all-zero bytes are a valid `stat`.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is valid for the call.
    let done = unsafe { libc::fstat(fd, &raw mut stat) };
    done == 0 && stat.st_rdev == libc::makedev(1, 3)
}

fn open_contrary(fd: RawFd) {
    let access = match fd {
        libc::STDIN_FILENO => libc::O_WRONLY,
        _ => libc::O_RDONLY,
    };
    // SAFETY: the path is a string that ends with a NUL byte. The descriptors that are replaced and
    // closed are the runtime's and the one that was opened here.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), access | libc::O_CLOEXEC);
        if null >= 0 {
            libc::dup2(null, fd);
            libc::close(null);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    use super::*;

    const CHILD: &str = "HVSOCK_TEST_CLOSED_STREAM";

    fn errno_of(count: isize) -> Option<i32> {
        (count < 0)
            .then(io::Error::last_os_error)
            .and_then(|error| error.raw_os_error())
    }

    /// The exit status tells which of the three streams failed with `EBADF`, as bits.
    fn failing() -> i32 {
        let mut byte = [0_u8];
        let mut failing = 0;
        for fd in 0..3 {
            // SAFETY: the buffer has one byte.
            let count = unsafe {
                match fd {
                    0 => libc::read(fd, byte.as_mut_ptr().cast(), 1),
                    _ => libc::write(fd, byte.as_ptr().cast(), 1),
                }
            };
            failing |= i32::from(errno_of(count) == Some(libc::EBADF)) << fd;
        }
        failing
    }

    #[test]
    fn a_stream_that_was_closed_at_the_start_fails_and_stays_occupied() {
        if std::env::var_os(CHILD).is_some() {
            fail_if_closed();
            let status = 0x40 | failing();
            // SAFETY: ends the process. The harness of the test has nothing to write to.
            unsafe { libc::_exit(status) };
        }
        for closed in 0..8 {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.env(CHILD, "1").args([
                "a_stream_that_was_closed_at_the_start",
                "--nocapture",
                "--test-threads=1",
            ]);
            for stream in [Command::stdin, Command::stdout, Command::stderr] {
                stream(&mut command, std::process::Stdio::null());
            }
            // SAFETY: `close` is async-signal-safe, and the streams are the new process's own.
            unsafe {
                command.pre_exec(move || {
                    for fd in (0..3).filter(|fd| closed & (1 << fd) != 0) {
                        libc::close(fd);
                    }
                    Ok(())
                });
            }
            assert_eq!(command.status().unwrap().code(), Some(0x40 | closed));
        }
    }
}
