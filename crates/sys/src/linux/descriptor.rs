//! The number of a descriptor, and what it refers to.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Lets the descriptor of `target` refer to what `by` refers to, close-on-exec. For an object of another crate
/// that owns its descriptor and has no way to get another one.
///
/// # Errors
///
/// Those of `dup3`.
pub fn replace(target: &mut impl AsRawFd, by: impl AsFd) -> io::Result<()> {
    // SAFETY: `target` owns its descriptor, is borrowed mutably, and stays open: the value here is not dropped.
    let descriptor = unsafe { OwnedFd::from_raw_fd(target.as_raw_fd()) };
    let mut descriptor = std::mem::ManuallyDrop::new(descriptor);
    let flags = rustix::io::DupFlags::CLOEXEC;
    rustix::io::retry_on_intr(|| rustix::io::dup3(by.as_fd(), &mut descriptor, flags))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_whose_descriptor_is_replaced_is_another_connection() {
        let (mut own, _old) = UnixStream::pair().unwrap();
        let (by, mut other) = UnixStream::pair().unwrap();
        let number = own.as_raw_fd();
        replace(&mut own, &by).unwrap();
        drop(by);
        assert_eq!(own.as_raw_fd(), number);
        other.write_all(b"x").unwrap();
        let mut byte = [0];
        own.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }
}
