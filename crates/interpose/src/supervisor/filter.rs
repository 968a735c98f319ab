//! The filter of a program that this crate starts.

use hvsock_sys::seccomp::{Action, Filter, FilterError, Rule};

use crate::calls::RULES;

/// The calls that open files by a path.
#[cfg(target_arch = "x86_64")]
const OPENING: [i64; 2] = [libc::SYS_openat, libc::SYS_open];
#[cfg(not(target_arch = "x86_64"))]
const OPENING: [i64; 1] = [libc::SYS_openat];

/// The filter for a program whose sockets are emulated.
///
/// With `emulate_device` opening files waits as well, so that `/dev/vsock` can be opened where there is none.
/// Each call costs the program some microseconds then.
///
/// # Errors
///
/// On an architecture that is not known.
pub fn filter(emulate_device: bool) -> Result<Filter, FilterError> {
    let mut rules = RULES.to_vec();
    if emulate_device {
        rules.extend(OPENING.map(|syscall| Rule {
            syscall,
            args: &[],
            action: Action::Notify,
        }));
    }
    Filter::build(&rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_files_waits_only_where_the_device_is_emulated() {
        let with = filter(true).unwrap();
        let without = filter(false).unwrap();
        assert!(with.notified().contains(&libc::SYS_openat));
        assert!(!without.notified().contains(&libc::SYS_openat));
        assert!(without.notified().contains(&libc::SYS_accept4));
    }
}
