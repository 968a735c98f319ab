//! The list of integration services.
//!
//! They use vsock ports 900 to 919, which are reserved for them. The ports are below 1024, so in a
//! guest only root can listen on them: no other user's program can pass for the agent. Every vsock
//! port is also a GUID on the vsock template.

use hvsock::ServiceId;

/// Which side listens for a service; the other side connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceSide {
    /// The agent in the guest listens, the host connects.
    Guest,
    /// The host listens, the guest connects.
    Host,
}

/// An integration service.
#[derive(Debug, PartialEq, Eq)]
pub struct Integration {
    /// The key on the command line, such as `session`.
    pub key: &'static str,
    /// The friendly name in the registry.
    pub name: &'static str,
    /// The vsock port.
    pub port: u32,
    /// The side that listens.
    pub side: ServiceSide,
    /// The purpose, as one phrase without a full stop.
    pub purpose: &'static str,
}

/// Commands and shells in the guest.
pub static SESSION: Integration = Integration {
    key: "session",
    name: "hvsock session",
    port: 911,
    side: ServiceSide::Guest,
    purpose: "run commands and shells in the guest",
};

/// Files and directory trees, in both directions.
pub static COPY: Integration = Integration {
    key: "copy",
    name: "hvsock copy",
    port: 912,
    side: ServiceSide::Guest,
    purpose: "copy files to and from the guest",
};

/// Key-value pairs.
pub static KVP: Integration = Integration {
    key: "kvp",
    name: "hvsock kvp",
    port: 913,
    side: ServiceSide::Guest,
    purpose: "exchange key-value pairs with the guest",
};

/// Orderly power-off and reboot.
pub static SHUTDOWN: Integration = Integration {
    key: "shutdown",
    name: "hvsock shutdown",
    port: 914,
    side: ServiceSide::Guest,
    purpose: "power the guest off or reboot it in an orderly way",
};

/// Freezing filesystems for a snapshot.
pub static FREEZE: Integration = Integration {
    key: "freeze",
    name: "hvsock freeze",
    port: 915,
    side: ServiceSide::Guest,
    purpose: "freeze the guest's filesystems for a snapshot",
};

/// TCP and Unix sockets, forwarded in both directions.
pub static FORWARD: Integration = Integration {
    key: "forward",
    name: "hvsock forward",
    port: 916,
    side: ServiceSide::Guest,
    purpose: "forward TCP ports and Unix sockets between host and guest",
};

/// Heartbeat of the guest.
pub static HEARTBEAT: Integration = Integration {
    key: "heartbeat",
    name: "hvsock heartbeat",
    port: 901,
    side: ServiceSide::Host,
    purpose: "report the guest's liveness and health",
};

/// The host's clock.
pub static TIME: Integration = Integration {
    key: "time",
    name: "hvsock time",
    port: 902,
    side: ServiceSide::Host,
    purpose: "synchronize the guest's clock with the host's",
};

/// Notifications from the guest's service manager.
pub static NOTIFY: Integration = Integration {
    key: "notify",
    name: "hvsock notify",
    port: 903,
    side: ServiceSide::Host,
    purpose: "report when the guest's service manager is ready",
};

/// All integration services, in the order in which they are listed.
pub static ALL: [&Integration; 9] = [
    &SESSION, &COPY, &HEARTBEAT, &TIME, &KVP, &SHUTDOWN, &FREEZE, &FORWARD, &NOTIFY,
];

impl Integration {
    /// The service's GUID.
    pub const fn id(&self) -> ServiceId {
        ServiceId::from_port(self.port)
    }

    /// Finds a service by its key, friendly name, port or GUID.
    pub fn find(text: &str) -> Option<&'static Self> {
        ALL.into_iter().find(|one| {
            one.key.eq_ignore_ascii_case(text)
                || one.name.eq_ignore_ascii_case(text)
                || text.parse() == Ok(one.port)
                || text.parse() == Ok(one.id())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn keys_names_and_ports_are_unique_and_ports_are_in_the_range() {
        let keys: HashSet<_> = ALL.iter().map(|one| one.key).collect();
        let names: HashSet<_> = ALL.iter().map(|one| one.name).collect();
        let ports: HashSet<_> = ALL.iter().map(|one| one.port).collect();
        assert_eq!([keys.len(), names.len(), ports.len()], [ALL.len(); 3]);
        assert!(ports.iter().all(|port| (900..=919).contains(port)));
    }

    #[test]
    fn the_services_page_lists_each_service_with_its_port_and_guid() {
        let page = include_str!("../../../docs/services.md");
        for one in ALL {
            let side = match one.side {
                ServiceSide::Guest => "guest",
                ServiceSide::Host => "host",
            };
            let (key, name, port, id) = (one.key, one.name, one.port, one.id());
            let row = format!("| {key} | {name} | {port} | `{id}` | {side} |");
            assert!(
                page.contains(&row),
                "docs/services.md lacks the row `{row}`"
            );
        }
    }

    #[test]
    fn a_service_is_found_by_key_name_port_and_guid() {
        let id = KVP.id().to_string();
        for text in ["kvp", "KVP", "hvsock kvp", "913", &id] {
            assert_eq!(Integration::find(text), Some(&KVP), "{text}");
        }
        assert_eq!(Integration::find("no such service"), None);
    }
}
