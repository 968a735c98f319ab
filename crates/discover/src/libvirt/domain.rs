//! A domain's description as a virtual machine.

use std::path::PathBuf;

use super::client::Domain;
use super::xml::{Tag, tags};
use crate::kind::ManagerKind;
use crate::machine::{Machine, Reach, State};
use crate::processes::qemu;

/// The virtual machine of a domain in this state (`virDomainState`).
pub fn machine(domain: &Domain, state: u32, xml: &str) -> Machine {
    let state = match state {
        // Running, idle, and shutting down: the guest still runs.
        1 | 2 | 4 => State::Running,
        // Paused, or suspended by the guest.
        3 | 7 => State::Paused,
        // Off and crashed.
        5 | 6 => State::Off,
        _ => State::Unknown,
    };
    let tags = tags(xml);
    let cid = tags
        .iter()
        .find(|tag| tag.name == "cid" && tag.parents.ends_with(&["devices", "vsock"]));
    let cid = cid.and_then(|tag| tag.attribute("address")?.parse().ok());
    let mut reach: Vec<Reach> = cid
        .map(|cid| Reach::Kernel { cid, netns: None })
        .into_iter()
        .collect();
    // Arguments that libvirt hands to QEMU as they are, such as our own device.
    let argument = |tag: &Tag<'_>| {
        let is_argument = tag.name.rsplit(':').next() == Some("arg");
        tag.attribute("value")
            .filter(|_| is_argument)
            .map(str::to_owned)
    };
    let arguments: Vec<String> = tags.iter().filter_map(argument).collect();
    for way in qemu::reach(&arguments, &|path| PathBuf::from(path)) {
        if !reach.contains(&way) {
            reach.push(way);
        }
    }
    let hex: String = domain
        .uuid
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Machine {
        manager: ManagerKind::Libvirt,
        name: domain.name.clone(),
        uuid: crate::text::hyphenated(&hex),
        state,
        pid: None,
        uid: None,
        reach,
    }
}
