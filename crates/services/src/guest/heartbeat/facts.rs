//! Facts about this guest that rarely change.

use std::fs;
use std::net::IpAddr;

use crate::guest::{addresses, os_release};
use crate::link::ServiceStatus;
use crate::wire::heartbeat::{Facts, Service};

/// The most addresses that are reported.
const ADDRESSES: usize = 32;

/// All current facts.
pub(super) fn now(statuses: &[ServiceStatus]) -> Facts {
    let uname = rustix::system::uname();
    let addresses = addresses::all();
    let v4 = addresses.v4.into_iter().map(IpAddr::from);
    let all = v4.chain(addresses.v6.into_iter().map(IpAddr::from));
    Facts {
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        agent: env!("CARGO_PKG_VERSION").into(),
        os: os_release::value(&os_release::read(), "PRETTY_NAME").unwrap_or_else(|| "Linux".into()),
        kernel: uname.release().to_string_lossy().into_owned(),
        hostname: uname.nodename().to_string_lossy().into_owned(),
        addresses: all.take(ADDRESSES).map(|a| a.to_string()).collect(),
        services: services(statuses),
    }
}

/// The status of the services, which may change more often.
pub(super) fn services(statuses: &[ServiceStatus]) -> Vec<Service> {
    statuses.iter().map(service).collect()
}

fn service(status: &ServiceStatus) -> Service {
    let problem = status.problem();
    Service {
        port: status.service().port,
        offered: problem.is_none(),
        problem: problem.unwrap_or_default(),
    }
}

fn line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_facts_of_this_machine_are_found() {
        let facts = now(&[]);
        assert_eq!(facts.boot_id.len(), 36, "{facts:?}");
        assert!(!facts.os.is_empty() && !facts.kernel.is_empty() && !facts.agent.is_empty());
    }
}
