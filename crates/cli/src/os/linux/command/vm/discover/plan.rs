//! What `hvsock vm discover` concludes from what it found: what is a partition already, and how another
//! virtual machine becomes one. No I/O but the resolution of links.

use std::path::Path;

use hvsock_address::{PartitionName, VmId};
use hvsock_control::{HybridStyle, LinkSpec, ManagerRef, NewVm, Partition};
use hvsock_discover::{Machine, ManagerKind, Reach, State};

/// Why a virtual machine cannot become a partition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It has no vsock device.
    #[error("it has no vsock device")]
    NoDevice,
    /// Its device belongs to another program.
    #[error("its vsock device is that of another program, at {0}")]
    OtherBackEnd(String),
    /// Its name has no character that a partition's name may have.
    #[error("its name has no character that a partition's name can have")]
    NoName,
}

/// The partition that this virtual machine is.
pub fn partition<'a>(machine: &Machine, partitions: &'a [Partition]) -> Option<&'a Partition> {
    let leads_to = |partition: &&Partition| {
        machine
            .reach
            .iter()
            .any(|way| match (way, &partition.link) {
                (Reach::Kernel { cid, netns }, Some(LinkSpec::Kernel { netns: ours, .. })) => {
                    partition.cid == Some(*cid) && netns == ours
                }
                (Reach::Hybrid { path, .. }, Some(LinkSpec::Hybrid { path: ours, .. })) => {
                    is_same(path, ours)
                }
                (Reach::VhostUser { socket }, _) => {
                    let ours = partition.socket.as_deref();
                    ours.is_some_and(|ours| is_same(socket, ours))
                }
                _ => false,
            })
    };
    partitions.iter().find(leads_to)
}

fn is_same(left: &Path, right: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    left == right || real(left).is_some_and(|left| real(right) == Some(left))
}

/// Whether it is added without being named. One that is off may get another context id when it starts, and what
/// a process of another user claims is not the word of a manager: a partition may reach services.
pub fn is_added_unnamed(machine: &Machine, own_uid: u32) -> bool {
    machine.state != State::Off && is_trusted(machine, own_uid)
}

/// Whether a manager, root or this user has described it.
fn is_trusted(machine: &Machine, own_uid: u32) -> bool {
    match machine.manager {
        ManagerKind::Processes => machine.uid.is_some_and(|uid| uid == 0 || uid == own_uid),
        _ => true,
    }
}

/// What a name means that this virtual machine and another one have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namesake {
    /// This one.
    None,
    /// The other one: nobody takes a name by claiming it.
    Preferred,
    /// Neither, since both only claim it.
    Equal,
}

/// Which one of all machines the name of this one means.
pub fn namesake(machine: &Machine, all: &[Machine], own_uid: u32) -> Namesake {
    let same = |other: &&Machine| other.name == machine.name;
    match all.iter().filter(same).count() {
        0 | 1 => Namesake::None,
        _ if is_trusted(machine, own_uid) => Namesake::None,
        _ if all
            .iter()
            .filter(same)
            .any(|other| is_trusted(other, own_uid)) =>
        {
            Namesake::Preferred
        }
        _ => Namesake::Equal,
    }
}

/// The virtual machine as a partition.
pub fn new_vm(machine: &Machine) -> Result<NewVm, Unfit> {
    let link = |way: &Reach| match way {
        Reach::Kernel { cid, netns } => Some((
            LinkSpec::Kernel {
                netns: netns.clone(),
                manager: manager(machine),
            },
            Some(*cid),
        )),
        Reach::Hybrid { path, style } => {
            let style = match style {
                hvsock_discover::HybridStyle::Firecracker => HybridStyle::Firecracker,
                hvsock_discover::HybridStyle::CloudHypervisor => HybridStyle::CloudHypervisor,
                hvsock_discover::HybridStyle::OpenVmm => HybridStyle::OpenVmm,
            };
            let path = path.clone();
            Some((LinkSpec::Hybrid { path, style }, None))
        }
        Reach::VhostUser { .. } => None,
    };
    let Some((link, cid)) = machine.reach.iter().find_map(link) else {
        return Err(match machine.reach.first() {
            Some(Reach::VhostUser { socket }) => Unfit::OtherBackEnd(socket.display().to_string()),
            _ => Unfit::NoDevice,
        });
    };
    Ok(NewVm {
        name: name(&machine.name).ok_or(Unfit::NoName)?,
        cid,
        id: machine
            .uuid
            .as_deref()
            .and_then(|text| text.parse::<VmId>().ok()),
        groups: Vec::new(),
        link,
        unsealed_memory: false,
        user: None,
    })
}

/// Who knows the state of the virtual machine later. A process that has ended cannot be asked.
fn manager(machine: &Machine) -> Option<ManagerRef> {
    (machine.manager != ManagerKind::Processes).then(|| ManagerRef {
        manager: machine.manager.name().to_owned(),
        vm: machine.name.clone(),
    })
}

/// The name of a partition that is most like this text.
fn name(text: &str) -> Option<PartitionName> {
    if let Ok(name) = PartitionName::unnested(text) {
        return Some(name);
    }
    let plain: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(63)
        .collect();
    let plain = plain.trim_end_matches(['-', '.', '_']);
    if plain.is_empty() {
        return None;
    }
    // A word that means something else gets a prefix.
    PartitionName::new(plain)
        .or_else(|_| PartitionName::new(format!("vm-{plain}")))
        .ok()
}

/// A way in one line.
pub fn text(way: &Reach) -> String {
    match way {
        Reach::Kernel { cid, netns: None } => format!("kernel CID {cid}"),
        Reach::Kernel {
            cid,
            netns: Some(netns),
        } => format!("kernel CID {cid} in {}", netns.display()),
        Reach::Hybrid { path, style } => {
            let style = match style {
                hvsock_discover::HybridStyle::Firecracker => "Firecracker",
                hvsock_discover::HybridStyle::CloudHypervisor => "Cloud Hypervisor",
                hvsock_discover::HybridStyle::OpenVmm => "OpenVMM",
            };
            format!("{style} socket {}", path.display())
        }
        Reach::VhostUser { socket } => format!("vhost-user {}", socket.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(manager: ManagerKind, name: &str, reach: Vec<Reach>) -> Machine {
        Machine {
            manager,
            name: name.to_owned(),
            uuid: Some("0b2f1f0e-0000-4000-8000-000000000001".to_owned()),
            state: State::Running,
            pid: Some(7),
            uid: Some(1000),
            reach,
        }
    }

    #[test]
    fn a_name_that_no_partition_can_have_becomes_the_nearest_one() {
        for (text, want) in [
            ("web", Some("web")),
            ("my vm", Some("my-vm")),
            ("project/web", Some("project-web")),
            ("../../etc", Some("etc")),
            ("\u{1b}[31mred", Some("31mred")),
            ("parent", Some("vm-parent")),
            ("ü", None),
            ("", None),
        ] {
            let name = name(text);
            assert_eq!(name.as_ref().map(AsRef::as_ref), want, "{text:?}");
        }
        let long = "x".repeat(500);
        assert_eq!(name(&long).map(|name| name.to_string().len()), Some(63));
    }

    #[test]
    fn the_kernel_goes_before_a_socket_and_a_foreign_back_end_is_no_way() {
        let kernel = Reach::Kernel {
            cid: 77,
            netns: None,
        };
        let foreign = Reach::VhostUser {
            socket: "/run/other.sock".into(),
        };
        let both = vec![foreign.clone(), kernel];
        let added = new_vm(&machine(ManagerKind::Libvirt, "web", both)).expect("a VM");
        assert_eq!(added.cid, Some(77));
        let LinkSpec::Kernel { manager, .. } = added.link else {
            panic!("{added:?}")
        };
        assert_eq!(manager.map(|one| one.vm).as_deref(), Some("web"));
        let refused = new_vm(&machine(ManagerKind::Libvirt, "web", vec![foreign]));
        assert_eq!(refused, Err(Unfit::OtherBackEnd("/run/other.sock".into())));
        let refused = new_vm(&machine(ManagerKind::Libvirt, "web", Vec::new()));
        assert_eq!(refused, Err(Unfit::NoDevice));
    }

    #[test]
    fn a_name_that_several_have_does_not_mean_one_that_only_claims_it() {
        let own = machine(ManagerKind::Libvirt, "web", Vec::new());
        let claimed = machine(ManagerKind::Processes, "web", Vec::new());
        let unknown = Machine {
            uid: None,
            ..claimed.clone()
        };
        let other = machine(ManagerKind::Processes, "db", Vec::new());
        for (machine, all, own_uid, means) in [
            (&claimed, [&claimed, &own], 0, Namesake::Preferred),
            (&unknown, [&own, &unknown], 1000, Namesake::Preferred),
            (&claimed, [&claimed, &unknown], 0, Namesake::Equal),
            (&own, [&claimed, &own], 0, Namesake::None),
            (&claimed, [&claimed, &other], 0, Namesake::None),
            (&claimed, [&claimed, &own], 1000, Namesake::None),
        ] {
            let all = all.map(Machine::clone);
            assert_eq!(namesake(machine, &all, own_uid), means, "{machine:?}");
        }
    }

    #[test]
    fn what_a_process_of_another_user_claims_is_added_only_by_its_name() {
        let claimed = machine(ManagerKind::Processes, "web", Vec::new());
        assert!(!is_added_unnamed(&claimed, 0));
        assert!(is_added_unnamed(&claimed, 1000));
        let of_nobody_known = Machine {
            uid: None,
            ..claimed
        };
        assert!(!is_added_unnamed(&of_nobody_known, 0));
        let managed = machine(ManagerKind::Libvirt, "web", Vec::new());
        assert!(is_added_unnamed(&managed, 0));
        let off = Machine {
            state: State::Off,
            ..managed
        };
        assert!(!is_added_unnamed(&off, 0));
    }
}
