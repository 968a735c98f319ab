//! Converts error numbers of the kernel to refusals.

use std::io;
use std::time::Duration;

use hvsock_address::{ServiceRef, VmId};
use hvsock_fabric::{Fix, Refusal};
use hvsock_sys::errno;

use super::resolve::{ConnectTarget, ListenTarget};
use crate::error::{refused_with, refused_with_fix};
use hvsock_sys::machine::Machine;

/// The error of a connect.
pub(super) fn of_connect(machine: Machine, target: &ConnectTarget, error: io::Error) -> io::Error {
    let (port, local) = (target.address.port, target.is_local());
    match error.raw_os_error() {
        // The peer sends the same RST packet in all these cases, and it has no field for a reason.
        Some(errno::ECONNRESET | errno::ECONNREFUSED) if local => refused_with(
            Refusal::NoListener,
            format!("no listener on this machine at vsock port {port}, or its backlog is full"),
        ),
        Some(errno::ECONNRESET | errno::ECONNREFUSED) => refused_with_fix(
            Refusal::NoListener,
            format!(
                "the host refused the connection to vsock port {port}: no listener, or the \
                 service is not registered, or not for this machine; the host's log shows which"
            ),
            Fix::ExplainOnHost {
                partition: VmId::PARENT.into(),
                service: ServiceRef::Id(target.peer.service),
                listening: false,
            },
        ),
        Some(errno::ETIMEDOUT) if machine == Machine::HyperV => refused_with(
            Refusal::TimedOut,
            format!(
                "timed out: no reply for vsock port {port}; a Hyper-V host sends none if the service \
                 is not registered or has no listener"
            ),
        ),
        Some(errno::ETIMEDOUT) => no_reply_error(target, None),
        Some(errno::EADDRNOTAVAIL) if local => no_loopback(),
        Some(errno::ENODEV | errno::ENETUNREACH | errno::EHOSTUNREACH) => refused_with(
            Refusal::NotReachable,
            format!(
                "no vsock transport of this machine leads to CID {}",
                target.address.cid
            ),
        ),
        Some(errno::EPERM | errno::EACCES) => refused_with(
            Refusal::Denied {
                rule: "the kernel".to_owned(),
            },
            format!("the kernel of this machine denied the connect: {error}"),
        ),
        _ => of_socket(error),
    }
}

/// The error of a connect that the host has refused and would accept now.
pub(super) fn allowed(target: &ConnectTarget) -> io::Error {
    let text = format!(
        "the host refused the connection to vsock port {}, which it would accept now; try again",
        target.address.port
    );
    refused_with(Refusal::NoListener, text)
}

/// The error for a connect without a reply.
pub(super) fn no_reply_error(target: &ConnectTarget, after: Option<Duration>) -> io::Error {
    let port = target.address.port;
    let target_name = if target.is_local() {
        "this machine"
    } else {
        "the host"
    };
    let after = after.map_or_else(|| "in time".to_owned(), |after| format!("within {after:?}"));
    let text = format!("timed out: {target_name} did not reply {after} for vsock port {port}");
    refused_with(Refusal::TimedOut, text)
}

/// The error of a bind or listen.
pub(super) fn of_listen(target: &ListenTarget, error: io::Error) -> io::Error {
    let port = target.address.port;
    match error.raw_os_error() {
        Some(errno::EADDRINUSE) => refused_with(
            Refusal::AddressInUse,
            format!(
                "vsock port {port} is in use on this machine; the kernel permits one listener per \
                 port, whichever partition it is for"
            ),
        ),
        Some(errno::EADDRNOTAVAIL) => no_loopback(),
        Some(errno::EACCES) => refused_with(
            Refusal::Denied {
                rule: "CAP_NET_BIND_SERVICE".to_owned(),
            },
            format!("vsock port {port} is below 1024 and needs CAP_NET_BIND_SERVICE"),
        ),
        _ => of_socket(error),
    }
}

/// The error of creating a socket.
pub(super) fn of_socket(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno::EAFNOSUPPORT) => refused_with(
            Refusal::NotSupported,
            "this kernel has no AF_VSOCK, or its module vsock is not loaded",
        ),
        Some(errno::ENOMEM | errno::ENOBUFS) => refused_with(
            Refusal::LimitReached {
                which: "the kernel's memory".to_owned(),
            },
            "the kernel of this machine has no memory for a socket",
        ),
        _ => error,
    }
}

/// The error for a connection that was reset.
pub(super) fn reset() -> io::Error {
    Refusal::Reset {
        cause: "the virtual machine's connection to its host was reset".to_owned(),
    }
    .into_reset_error()
}

fn no_loopback() -> io::Error {
    refused_with_fix(
        Refusal::AddressNotAvailable,
        "this kernel has no vsock loopback",
        Fix::LoadModule {
            module: "vsock_loopback".to_owned(),
        },
    )
}

#[cfg(test)]
mod tests {
    use hvsock_address::SockAddrHv;

    use super::*;
    use crate::{HvAddr, ServiceId, fix_of, refusal_of};

    const GUEST: Machine = Machine::Guest { cid: Some(42) };

    fn target(vm: VmId) -> ConnectTarget {
        let address = SockAddrHv::new(vm, ServiceId::from_port(2761));
        ConnectTarget::of(GUEST, &HvAddr::from(address)).unwrap()
    }

    fn connect(vm: VmId, machine: Machine, number: i32) -> (Option<Refusal>, String) {
        let error = of_connect(machine, &target(vm), io::Error::from_raw_os_error(number));
        (refusal_of(&error).cloned(), error.to_string())
    }

    #[test]
    fn connect_errors_map_to_refusals() {
        let denied = Refusal::Denied {
            rule: "the kernel".to_owned(),
        };
        let memory = Refusal::LimitReached {
            which: "the kernel's memory".to_owned(),
        };
        for (number, refusal) in [
            (errno::ECONNRESET, Refusal::NoListener),
            (errno::ECONNREFUSED, Refusal::NoListener),
            (errno::ETIMEDOUT, Refusal::TimedOut),
            (errno::ENODEV, Refusal::NotReachable),
            (errno::ENETUNREACH, Refusal::NotReachable),
            (errno::EHOSTUNREACH, Refusal::NotReachable),
            (errno::EPERM, denied),
            (errno::ENOMEM, memory),
            (errno::EAFNOSUPPORT, Refusal::NotSupported),
        ] {
            let (found, text) = connect(VmId::PARENT, GUEST, number);
            assert_eq!(found, Some(refusal), "{text}");
        }
        // An error that does not concern the peer stays as it is.
        assert_eq!(connect(VmId::PARENT, GUEST, errno::EINVAL).0, None);
    }

    #[test]
    fn the_error_has_what_explains_or_fixes_it() {
        let failed = |vm, number| {
            let error = io::Error::from_raw_os_error(number);
            of_connect(GUEST, &target(vm), error)
        };
        let error = failed(VmId::PARENT, errno::ECONNRESET);
        let explain = Fix::ExplainOnHost {
            partition: VmId::PARENT.into(),
            service: ServiceRef::Id(ServiceId::from_port(2761)),
            listening: false,
        };
        assert_eq!(fix_of(&error), Some(explain));
        let (_, text) = connect(VmId::LOOPBACK, GUEST, errno::ECONNRESET);
        assert!(!text.contains("host"), "{text}");
        let error = failed(VmId::LOOPBACK, errno::EADDRNOTAVAIL);
        let text = error.to_string();
        assert!(
            text.contains("load the kernel module vsock_loopback"),
            "{text}"
        );
        assert!(matches!(fix_of(&error), Some(Fix::LoadModule { .. })));
        let (_, text) = connect(VmId::PARENT, Machine::HyperV, errno::ETIMEDOUT);
        assert!(text.contains("not registered"), "{text}");
    }

    #[test]
    fn listen_errors_map_to_refusals() {
        let address = SockAddrHv::new(VmId::WILDCARD, ServiceId::from_port(22));
        let target = ListenTarget::of(GUEST, &HvAddr::from(address)).unwrap();
        let privileged = Refusal::Denied {
            rule: "CAP_NET_BIND_SERVICE".to_owned(),
        };
        for (number, refusal) in [
            (errno::EADDRINUSE, Refusal::AddressInUse),
            (errno::EADDRNOTAVAIL, Refusal::AddressNotAvailable),
            (errno::EACCES, privileged),
        ] {
            let error = of_listen(&target, io::Error::from_raw_os_error(number));
            assert_eq!(refusal_of(&error), Some(&refusal));
            assert_eq!(error.kind(), refusal.kind());
        }
    }
}
