//! Resource limits of this process.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The soft limit of open descriptors (`RLIMIT_NOFILE`) of this process; `u64::MAX` if there is none.
pub fn descriptors() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Whether an error is a shortage of descriptors, memory or buffers: it passes, and the call may be
/// repeated later.
pub fn is_shortage(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS | Errno::AGAIN)
    ) || error.kind() == io::ErrorKind::OutOfMemory
}

/// Raises the soft limit of open descriptors (`RLIMIT_NOFILE`) to the hard limit, and returns it;
/// `u64::MAX` if there is none.
///
/// # Errors
///
/// Those of `setrlimit`.
pub fn raise_descriptors() -> io::Result<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, raised)?;
    Ok(maximum.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_shortage_of_what_becomes_free_again_counts_as_one() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS] {
            assert!(is_shortage(&errno.into()), "{errno}");
        }
        for errno in [
            Errno::ACCESS,
            Errno::NOENT,
            Errno::IO,
            Errno::NOSPC,
            Errno::ROFS,
        ] {
            assert!(!is_shortage(&errno.into()), "{errno}");
        }
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let got = raise_descriptors().unwrap();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(now.current, now.maximum);
        assert_eq!(got, now.maximum.unwrap_or(u64::MAX));
    }
}
