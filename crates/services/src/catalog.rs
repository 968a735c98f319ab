//! Which integration services there are.
//!
//! Their ports are 900 to 919, which is theirs alone; services of others should keep out of it. They
//! are below 1024, where in a guest only root may listen, so that what the host sends to its agent
//! no other user's program gets. A port is on the vsock template, so it is a GUID as well.

use hvsock::ServiceId;

/// Who offers a service, and so who connects to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The agent in the guest listens, the host connects.
    Guest,
    /// The host listens, the guest connects.
    Host,
}

/// One integration service.
#[derive(Debug, PartialEq, Eq)]
pub struct Integration {
    /// A word for the command line, such as `session`.
    pub key: &'static str,
    /// The friendly name, as it is registered.
    pub name: &'static str,
    /// Its vsock port.
    pub port: u32,
    /// Who offers it.
    pub side: Side,
    /// What it is for, in one sentence without a full stop.
    pub purpose: &'static str,
}

/// Commands and shells in the guest.
pub static SESSION: Integration = Integration {
    key: "session",
    name: "hvsock session",
    port: 911,
    side: Side::Guest,
    purpose: "run commands and shells in the guest",
};

/// Files and trees, both ways.
pub static COPY: Integration = Integration {
    key: "copy",
    name: "hvsock copy",
    port: 912,
    side: Side::Guest,
    purpose: "copy files to and from the guest",
};

/// Key-value pairs.
pub static KVP: Integration = Integration {
    key: "kvp",
    name: "hvsock kvp",
    port: 913,
    side: Side::Guest,
    purpose: "exchange key-value pairs with the guest",
};

/// Orderly power-off and reboot.
pub static SHUTDOWN: Integration = Integration {
    key: "shutdown",
    name: "hvsock shutdown",
    port: 914,
    side: Side::Guest,
    purpose: "power the guest off or reboot it in an orderly way",
};

/// Filesystems at rest for a snapshot.
pub static FREEZE: Integration = Integration {
    key: "freeze",
    name: "hvsock freeze",
    port: 915,
    side: Side::Guest,
    purpose: "freeze the guest's filesystems for a snapshot",
};

/// TCP and Unix sockets across the boundary.
pub static FORWARD: Integration = Integration {
    key: "forward",
    name: "hvsock forward",
    port: 916,
    side: Side::Guest,
    purpose: "reach TCP ports and Unix sockets of the guest, and the other way round",
};

/// Signs of life.
pub static HEARTBEAT: Integration = Integration {
    key: "heartbeat",
    name: "hvsock heartbeat",
    port: 901,
    side: Side::Host,
    purpose: "hear from the guest that it is alive and how it is",
};

/// The host's clock.
pub static TIME: Integration = Integration {
    key: "time",
    name: "hvsock time",
    port: 902,
    side: Side::Host,
    purpose: "keep the guest's clock at the host's time",
};

/// Notifications of a guest's service manager.
pub static NOTIFY: Integration = Integration {
    key: "notify",
    name: "hvsock notify",
    port: 903,
    side: Side::Host,
    purpose: "hear from the guest's service manager that it is ready",
};

/// All of them, in the order in which they are listed.
pub static ALL: [&Integration; 9] = [
    &SESSION, &COPY, &HEARTBEAT, &TIME, &KVP, &SHUTDOWN, &FREEZE, &FORWARD, &NOTIFY,
];

impl Integration {
    /// Its GUID.
    pub const fn id(&self) -> ServiceId {
        ServiceId::from_port(self.port)
    }

    /// The one that a person means by its key, its friendly name, its port or its GUID.
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
    fn each_has_a_key_a_name_and_a_port_of_its_own_in_the_range() {
        let keys: HashSet<_> = ALL.iter().map(|one| one.key).collect();
        let names: HashSet<_> = ALL.iter().map(|one| one.name).collect();
        let ports: HashSet<_> = ALL.iter().map(|one| one.port).collect();
        assert_eq!([keys.len(), names.len(), ports.len()], [ALL.len(); 3]);
        assert!(ports.iter().all(|port| (900..=919).contains(port)));
    }

    #[test]
    fn the_page_of_services_lists_each_with_its_port_and_guid() {
        let page = include_str!("../../../docs/services.md");
        for one in ALL {
            let side = match one.side {
                Side::Guest => "guest",
                Side::Host => "host",
            };
            let (key, name, port, id) = (one.key, one.name, one.port, one.id());
            let row = format!("| {key} | {name} | {port} | `{id}` | {side} |");
            assert!(page.contains(&row), "no line `{row}`");
        }
    }

    #[test]
    fn one_is_found_by_whatever_names_it() {
        let id = KVP.id().to_string();
        for text in ["kvp", "KVP", "hvsock kvp", "913", &id] {
            assert_eq!(Integration::find(text), Some(&KVP), "{text}");
        }
        assert_eq!(Integration::find("smoke signals"), None);
    }
}
