//! One service's entry.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use hvsock_address::{ElementName, PartitionName, ServiceId};
use uuid::uuid;

/// Who may do one thing. A list that is left out falls to the next in line: the child's
/// [`Override`], the [`Registration`], the [`Defaults`], and at last what is built in.
///
/// `users` and `groups` are one question, about processes in the partition that owns the registry:
/// matching either list is enough, and giving either, even empty, answers the question. The other
/// question, `partitions`, is about that partition's children.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessRule {
    /// Names or numeric ids of users; `*` is everyone.
    pub users: Option<Vec<String>>,
    /// Names or numeric ids of groups; `*` is everyone.
    pub groups: Option<Vec<String>>,
    /// Names or ids of child partitions; `@group` is a sibling group, `*` is every child.
    pub partitions: Option<Vec<String>>,
}

/// A service that a partition's owner allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The service's GUID.
    pub id: ServiceId,
    /// The friendly name.
    pub name: ElementName,
    /// Whether it may be used; if not, new uses are refused and established ones are cut.
    pub enabled: bool,
    /// Who may listen.
    pub bind: AccessRule,
    /// Who may connect.
    pub connect: AccessRule,
    /// Whether a listener may be bound to the wildcard.
    pub allow_wildcard_binds: Option<bool>,
    /// What differs for one child.
    pub vm: BTreeMap<PartitionName, Override>,
    /// The user who registered it.
    pub owner: Option<String>,
    /// The program that registered it.
    pub creator: Option<String>,
    /// What it is for.
    pub purpose: Option<String>,
    /// Whether it ends with the process that registered it; such an entry is never stored.
    pub lease: bool,
}

/// What differs for one child: what is given here stands in place of the registration's own.
///
/// It is about everything between that child and others, whichever end listens. Between two
/// siblings both children's overrides apply, and both must allow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Override {
    /// In place of [`Registration::enabled`].
    pub enabled: Option<bool>,
    /// In place of [`Registration::bind`], list by list.
    pub bind: AccessRule,
    /// In place of [`Registration::connect`], list by list.
    pub connect: AccessRule,
    /// In place of [`Registration::allow_wildcard_binds`].
    pub allow_wildcard_binds: Option<bool>,
}

/// What holds where a registration says nothing.
///
/// Built in: the registration's owner and every child may bind, everyone may connect, and the
/// wildcard may be bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Who may listen.
    pub bind: AccessRule,
    /// Who may connect.
    pub connect: AccessRule,
    /// Whether a listener may be bound to the wildcard.
    pub allow_wildcard_binds: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            bind: AccessRule::default(),
            connect: AccessRule::default(),
            allow_wildcard_binds: true,
        }
    }
}

impl Registration {
    /// An enabled entry that leaves everything else to the defaults.
    pub fn new(id: ServiceId, name: ElementName) -> Self {
        Self {
            id,
            name,
            enabled: true,
            bind: AccessRule::default(),
            connect: AccessRule::default(),
            allow_wildcard_binds: None,
            vm: BTreeMap::new(),
            owner: None,
            creator: None,
            purpose: None,
            lease: false,
        }
    }

    /// The vsock port that this service's id stands for, if it is on the template.
    pub fn port(&self) -> Option<u32> {
        self.id.port()
    }

    /// The vsock port by which guests reach this service, whose kernels know ports only: the
    /// template's, or else the id's alias.
    pub fn port_for_guests(&self) -> Option<u32> {
        self.id.port_for_guests()
    }

    /// The two services that Windows ships, so that nobody takes their ids or names.
    ///
    /// Source: the key `GuestCommunicationServices` of a fresh Windows with Hyper-V.
    pub fn in_box() -> [Registration; 2] {
        IN_BOX.clone()
    }

    /// Whether this entry has the id of one of those.
    pub fn is_in_box(&self) -> bool {
        IN_BOX.iter().any(|shipped| shipped.id == self.id)
    }
}

pub(super) static IN_BOX: LazyLock<[Registration; 2]> = LazyLock::new(|| {
    [
        (
            uuid!("999e53d4-3d5c-4c3e-8779-bed06ec056e1"),
            "VM Session Service",
        ),
        (
            uuid!("a5201c21-2770-4c11-a68e-f182edb29220"),
            "VM Session Service-2",
        ),
    ]
    .map(|(id, name)| Registration {
        owner: Some("Microsoft".to_owned()),
        creator: Some("Windows".to_owned()),
        purpose: Some("PowerShell Direct".to_owned()),
        ..Registration::new(
            ServiceId::from_uuid(id),
            ElementName::new(name).expect("a constant that is a name"),
        )
    })
});
