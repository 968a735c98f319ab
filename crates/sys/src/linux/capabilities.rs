//! The capabilities of the calling thread (capabilities(7)).

use std::io;

/// A set of capabilities: bit N is the one with number N.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Set(u64);

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const VERSION: u32 = 0x2008_0522;

/// The names of linux/capability.h, in the order of their numbers.
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

impl Set {
    /// No capability.
    pub const NONE: Self = Self(0);

    /// The set of the capabilities with these names (`CAP_CHOWN`). Unknown ones are left out.
    #[must_use]
    pub fn named(names: &[&str]) -> Self {
        let has = |name: &&str| names.contains(name);
        let bits = (0..).zip(NAMES).filter(|(_, name)| has(name));
        Self(bits.fold(0, |set, (bit, _)| set | 1_u64 << bit))
    }

    /// The set of the capabilities with these numbers, as `/proc/PID/status` has them.
    #[must_use]
    pub const fn of_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The names of those in the set.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        let bits = (0..).zip(NAMES);
        let bits = bits.filter(|(bit, _)| self.0 >> bit & 1 == 1);
        bits.map(|(_, name)| name).collect()
    }

    /// Those that are in both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

fn header() -> Header {
    Header {
        version: VERSION,
        pid: 0,
    }
}

/// The permitted capabilities of this thread.
///
/// # Errors
///
/// Those of `capget`.
pub fn permitted() -> io::Result<Set> {
    let (mut header, mut data) = (header(), [Data::default(); 2]);
    // SAFETY: both are valid for the call, and as large as this version says.
    let done = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let [low, high] = data.map(|data| u64::from(data.permitted));
    Ok(Set(high << 32 | low))
}

/// Drops all capabilities of this thread but those in `kept`, for good. The threads that it starts from then on have
/// no others, nor have the programs if this thread has [no new privileges](super::seccomp::no_new_privileges). Returns
/// what is left.
///
/// # Errors
///
/// Those of `capget` and `capset`.
pub fn keep_only(kept: Set) -> io::Result<Set> {
    let kept = kept.and(permitted()?);
    #[expect(clippy::cast_possible_truncation, reason = "the other half follows")]
    let data = [kept.0 as u32, (kept.0 >> 32) as u32].map(|bits| Data {
        effective: bits,
        permitted: bits,
        inheritable: 0,
    });
    let mut header = header();
    // Ambient ones end with the inheritable ones.
    // SAFETY: both are valid for the call, and as large as this version says.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        let set = Set::named(&[
            "CAP_CHOWN",
            "CAP_SYS_ADMIN",
            "CAP_CHECKPOINT_RESTORE",
            "CAP_X",
        ]);
        assert_eq!(set, Set(1 | 1 << 21 | 1 << 40));
        let names = ["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"];
        assert_eq!(set.names(), names);
    }

    #[test]
    fn what_is_dropped_is_gone_from_this_thread_only() {
        let before = permitted().unwrap();
        let confined = || {
            let kept = keep_only(Set::named(&["CAP_CHOWN"])).unwrap();
            assert_eq!(permitted().unwrap(), kept);
            assert_eq!(keep_only(Set::NONE).unwrap(), Set::NONE);
            assert_eq!(permitted().unwrap(), Set::NONE);
            // They do not come back.
            assert_eq!(keep_only(Set::named(&["CAP_CHOWN"])).unwrap(), Set::NONE);
        };
        std::thread::spawn(confined).join().unwrap();
        assert_eq!(permitted().unwrap(), before);
    }
}
