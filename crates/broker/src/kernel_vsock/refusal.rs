//! What the kernel's error numbers mean.

use std::io;

use hvsock_address::UPLINK_PORT;
use hvsock_fabric::{Fix, Refusal};
use hvsock_sys::errno;

use super::ports::PortFault;
use crate::guest_link::PortProblem;

/// Why a connect to a guest failed. A guest whose driver is not there, one that is gone and one that never
/// was look alike.
pub(super) fn of_connect(error: &io::Error) -> Refusal {
    match error.raw_os_error() {
        // No VM has this CID. Since Linux 7 the kernel also says so of one that does not run.
        Some(errno::ENODEV | errno::EHOSTUNREACH | errno::ENETUNREACH) => Refusal::PartitionOff,
        Some(errno::ECONNRESET | errno::ECONNREFUSED) => Refusal::NoListener,
        Some(errno::ETIMEDOUT) => Refusal::TimedOut,
        Some(errno::EAFNOSUPPORT) => Refusal::NotSupported,
        Some(errno::EMFILE | errno::ENFILE) => limit("open files"),
        Some(errno::ENOMEM | errno::ENOBUFS) => limit("the kernel's memory"),
        _ => Refusal::Reset {
            cause: format!("the kernel could not connect to the virtual machine: {error}"),
        },
    }
}

fn limit(which: &str) -> Refusal {
    Refusal::LimitReached {
        which: which.to_owned(),
    }
}

/// Why a port cannot be had.
pub(super) fn of_port(error: &io::Error) -> PortFault {
    match error.raw_os_error() {
        Some(errno::EADDRINUSE) => PortFault::InUse,
        Some(errno::EACCES | errno::EPERM) => PortFault::Privileged,
        Some(errno::EAFNOSUPPORT) => PortFault::NoVsock,
        number => PortFault::System(number.unwrap_or_default()),
    }
}

/// A fault of a port as a problem. `holder` is who has the port, if that is known.
pub(super) fn port_problem(port: u32, fault: PortFault, holder: Option<&str>) -> PortProblem {
    let (text, fix) = port_text(port, fault, holder);
    let refusal = match fault {
        PortFault::InUse => Refusal::AddressInUse,
        PortFault::Privileged => Refusal::Denied {
            rule: "CAP_NET_BIND_SERVICE".into(),
        },
        PortFault::NoVsock => Refusal::NotSupported,
        PortFault::TooMany => limit("vsock ports"),
        PortFault::System(_) => limit("the kernel's sockets"),
    };
    PortProblem { text, refusal, fix }
}

fn port_text(port: u32, fault: PortFault, holder: Option<&str>) -> (String, Option<Fix>) {
    let what = match port {
        UPLINK_PORT => format!(
            "guests cannot look up names, and brokers in them have no uplink, at vsock port {port}"
        ),
        _ => format!("guests do not reach the service at vsock port {port}"),
    };
    match fault {
        PortFault::InUse => {
            let holder = holder.unwrap_or("another process");
            let text = format!("{what}: {holder} has the port, and gets their connections");
            (text, Some(Fix::FreeVsockPort { port }))
        }
        PortFault::Privileged => {
            let capability = "CAP_NET_BIND_SERVICE".to_owned();
            let text = format!(
                "{what}: the broker may not have ports below 1024, which need {capability}"
            );
            (text, Some(Fix::GrantCapability { capability }))
        }
        PortFault::NoVsock => {
            let text = format!("{what}: the kernel has no AF_VSOCK");
            let module = "vhost_vsock".to_owned();
            (text, Some(Fix::LoadModule { module }))
        }
        PortFault::TooMany => {
            let text = format!("{what}: the broker has as many ports of the kernel as it may");
            (text, None)
        }
        PortFault::System(number) => {
            let error = io::Error::from_raw_os_error(number);
            (
                format!("{what}: the kernel does not give the port: {error}"),
                None,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_a_connect_are_refusals() {
        for (number, refusal) in [
            (errno::ENODEV, Refusal::PartitionOff),
            (errno::EHOSTUNREACH, Refusal::PartitionOff),
            (errno::ENETUNREACH, Refusal::PartitionOff),
            (errno::ECONNRESET, Refusal::NoListener),
            (errno::ECONNREFUSED, Refusal::NoListener),
            (errno::ETIMEDOUT, Refusal::TimedOut),
            (errno::EAFNOSUPPORT, Refusal::NotSupported),
            (errno::EMFILE, limit("open files")),
            (errno::ENOMEM, limit("the kernel's memory")),
        ] {
            assert_eq!(of_connect(&io::Error::from_raw_os_error(number)), refusal);
        }
        let other = of_connect(&io::Error::from_raw_os_error(errno::EINVAL));
        assert!(matches!(other, Refusal::Reset { .. }));
    }

    #[test]
    fn a_fault_of_a_port_says_what_is_in_the_way() {
        for (fault, part) in [
            (PortFault::InUse, "process 7 (socat) has the port"),
            (PortFault::Privileged, "CAP_NET_BIND_SERVICE"),
            (PortFault::NoVsock, "no AF_VSOCK"),
            (PortFault::TooMany, "as many ports"),
            (PortFault::System(errno::ENOMEM), "memory"),
        ] {
            let (text, _) = port_text(5000, fault, Some("process 7 (socat)"));
            assert!(text.contains(part) && text.contains("port 5000"), "{text}");
        }
        let (own, _) = port_text(UPLINK_PORT, PortFault::Privileged, None);
        assert!(own.contains("look up names") && own.contains("CAP_NET_BIND_SERVICE"));
        let (unknown, _) = port_text(5000, PortFault::InUse, None);
        assert!(
            unknown.contains("another process has the port"),
            "{unknown}"
        );
        let (_, fix) = port_text(5000, PortFault::NoVsock, None);
        assert!(matches!(fix, Some(Fix::LoadModule { .. })));
    }
}
