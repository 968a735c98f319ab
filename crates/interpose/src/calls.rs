//! Which system calls wait for a supervisor, for programs that this crate starts and for containers.

use hvsock_address::HV_PROTOCOL_RAW;
use hvsock_sys::seccomp::{Action, ArgEq, Rule};

use crate::model::{Family, IOCTL_GET_LOCAL_CID};

const fn arg(index: u8, value: u32) -> ArgEq {
    ArgEq { index, value }
}

/// A level and an option of it.
const fn option(level: i32, name: i32) -> [ArgEq; 2] {
    [arg(1, level.cast_unsigned()), arg(2, name.cast_unsigned())]
}

const fn notify(syscall: i64, args: &[ArgEq]) -> Rule<'_> {
    Rule {
        syscall,
        args,
        action: Action::Notify,
    }
}

/// The rules of all programs.
pub(crate) const RULES: [Rule<'static>; 20] = [
    notify(libc::SYS_socket, &[arg(0, Family::Vsock.number() as u32)]),
    notify(libc::SYS_socket, &[arg(0, Family::HyperV.number() as u32)]),
    notify(libc::SYS_ioctl, &[arg(1, IOCTL_GET_LOCAL_CID)]),
    notify(
        libc::SYS_setsockopt,
        &[arg(1, Family::Vsock.option_level().cast_unsigned())],
    ),
    notify(libc::SYS_setsockopt, &option(HV_PROTOCOL_RAW, 1)),
    notify(libc::SYS_setsockopt, &option(HV_PROTOCOL_RAW, 4)),
    notify(
        libc::SYS_getsockopt,
        &[arg(1, Family::Vsock.option_level().cast_unsigned())],
    ),
    notify(libc::SYS_getsockopt, &option(HV_PROTOCOL_RAW, 1)),
    notify(
        libc::SYS_getsockopt,
        &option(libc::SOL_SOCKET, libc::SO_DOMAIN),
    ),
    notify(
        libc::SYS_getsockopt,
        &option(libc::SOL_SOCKET, libc::SO_PROTOCOL),
    ),
    notify(
        libc::SYS_getsockopt,
        &option(libc::SOL_SOCKET, libc::SO_ERROR),
    ),
    // Always: only the supervisor knows which descriptors are emulated.
    notify(libc::SYS_bind, &[]),
    notify(libc::SYS_listen, &[]),
    notify(libc::SYS_connect, &[]),
    notify(libc::SYS_accept, &[]),
    notify(libc::SYS_accept4, &[]),
    notify(libc::SYS_getsockname, &[]),
    notify(libc::SYS_getpeername, &[]),
    // On a Unix socket without a peer it would succeed, and end a listener.
    notify(libc::SYS_shutdown, &[]),
    // Its calls do not pass the filter. Programs fall back to others where there is none.
    Rule {
        syscall: libc::SYS_io_uring_setup,
        args: &[],
        action: Action::Errno(libc::ENOSYS),
    },
];

/// The names of the calls with rules.
pub(crate) const NAMES: [(i64, &str); 13] = [
    (libc::SYS_socket, "socket"),
    (libc::SYS_ioctl, "ioctl"),
    (libc::SYS_setsockopt, "setsockopt"),
    (libc::SYS_getsockopt, "getsockopt"),
    (libc::SYS_bind, "bind"),
    (libc::SYS_listen, "listen"),
    (libc::SYS_connect, "connect"),
    (libc::SYS_accept, "accept"),
    (libc::SYS_accept4, "accept4"),
    (libc::SYS_getsockname, "getsockname"),
    (libc::SYS_getpeername, "getpeername"),
    (libc::SYS_shutdown, "shutdown"),
    (libc::SYS_io_uring_setup, "io_uring_setup"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_with_a_rule_has_a_name() {
        for rule in RULES {
            assert!(
                NAMES.iter().any(|(syscall, _)| *syscall == rule.syscall),
                "{rule:?}"
            );
        }
        for (syscall, name) in NAMES {
            assert!(RULES.iter().any(|rule| rule.syscall == syscall), "{name}");
        }
    }
}
