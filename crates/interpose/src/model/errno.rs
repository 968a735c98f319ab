//! Error numbers of the emulated calls.

/// An error number of Linux's `errno.h`, which a call fails with. Positive.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

#[allow(missing_docs, reason = "the names are those of errno.h")]
impl Errno {
    pub const EACCES: Self = Self(libc::EACCES);
    pub const EADDRINUSE: Self = Self(libc::EADDRINUSE);
    pub const EADDRNOTAVAIL: Self = Self(libc::EADDRNOTAVAIL);
    pub const EAFNOSUPPORT: Self = Self(libc::EAFNOSUPPORT);
    pub const EAGAIN: Self = Self(libc::EAGAIN);
    pub const EALREADY: Self = Self(libc::EALREADY);
    pub const EBADF: Self = Self(libc::EBADF);
    pub const ECONNREFUSED: Self = Self(libc::ECONNREFUSED);
    pub const ECONNRESET: Self = Self(libc::ECONNRESET);
    pub const EFAULT: Self = Self(libc::EFAULT);
    pub const EINPROGRESS: Self = Self(libc::EINPROGRESS);
    pub const EINTR: Self = Self(libc::EINTR);
    pub const EINVAL: Self = Self(libc::EINVAL);
    pub const EISCONN: Self = Self(libc::EISCONN);
    pub const EMFILE: Self = Self(libc::EMFILE);
    pub const ENFILE: Self = Self(libc::ENFILE);
    pub const ENOBUFS: Self = Self(libc::ENOBUFS);
    pub const ENODEV: Self = Self(libc::ENODEV);
    pub const ENOPROTOOPT: Self = Self(libc::ENOPROTOOPT);
    pub const ENOTCONN: Self = Self(libc::ENOTCONN);
    pub const EPROTONOSUPPORT: Self = Self(libc::EPROTONOSUPPORT);
    pub const ERANGE: Self = Self(libc::ERANGE);
    pub const ESOCKTNOSUPPORT: Self = Self(libc::ESOCKTNOSUPPORT);
    pub const ETIMEDOUT: Self = Self(libc::ETIMEDOUT);

    /// The error with this number; `EIO` if it is none (1 to 4095).
    pub const fn new(number: i32) -> Self {
        match number {
            1..=4095 => Self(number),
            _ => Self(libc::EIO),
        }
    }

    /// The error of a call of this process.
    pub fn of(error: &std::io::Error) -> Self {
        Self::new(error.raw_os_error().unwrap_or(libc::EIO))
    }

    /// Its number.
    pub const fn number(self) -> i32 {
        self.0
    }
}

impl std::fmt::Debug for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Errno({}: {self})", self.0)
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_no_error_becomes_an_input_output_error() {
        for number in [0, -1, 4096, i32::MIN] {
            assert_eq!(Errno::new(number).number(), libc::EIO);
        }
    }
}
