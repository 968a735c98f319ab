//! The registration of one service.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use hvsock_address::{ElementName, PartitionName, ServiceId};
use uuid::uuid;

/// Who may perform one action. A list that is left out is inherited. The order of precedence is the
/// child's [`Override`], the [`Registration`], the [`Defaults`], then the built-in rule.
///
/// `users` and `groups` apply together, to processes in the partition that owns the registry. A match
/// in either list is enough, and if either list is present (even empty), nothing is inherited.
/// `partitions` applies to that partition's children and is inherited separately.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessRule {
    /// Names or numeric ids of users; `*` matches everyone.
    pub users: Option<Vec<String>>,
    /// Names or numeric ids of groups; `*` matches everyone.
    pub groups: Option<Vec<String>>,
    /// Names or ids of child partitions; `@group` matches a sibling group, `*` every child.
    pub partitions: Option<Vec<String>>,
}

/// A registered service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The service's GUID.
    pub id: ServiceId,
    /// The friendly name (`ElementName` on Windows).
    pub name: ElementName,
    /// Whether the service may be used. If not, new connections and listeners are refused and
    /// existing ones are reset.
    pub enabled: bool,
    /// Who may listen.
    pub bind: AccessRule,
    /// Who may connect.
    pub connect: AccessRule,
    /// Whether a listener may bind the wildcard.
    pub allow_wildcard_binds: Option<bool>,
    /// Overrides for single children.
    pub vm: BTreeMap<PartitionName, Override>,
    /// The user who registered the service.
    pub owner: Option<String>,
    /// The program that registered the service.
    pub creator: Option<String>,
    /// What the service is for.
    pub purpose: Option<String>,
    /// Whether the registration ends with the process that made it. A lease is never stored.
    pub lease: bool,
}

/// The settings that differ for one child. Each one present replaces the registration's own.
///
/// An override applies to all traffic between that child and other partitions, whichever end
/// listens. Between two siblings, both children's overrides apply and both must allow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Override {
    /// Replaces [`Registration::enabled`].
    pub enabled: Option<bool>,
    /// Replaces [`Registration::bind`], list by list.
    pub bind: AccessRule,
    /// Replaces [`Registration::connect`], list by list.
    pub connect: AccessRule,
    /// Replaces [`Registration::allow_wildcard_binds`].
    pub allow_wildcard_binds: Option<bool>,
}

/// The settings for everything that a registration leaves out.
///
/// [`Defaults::default`] is the built-in rule: the registration's owner and every child may bind,
/// everyone may connect, and listeners may bind the wildcard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Who may listen.
    pub bind: AccessRule,
    /// Who may connect.
    pub connect: AccessRule,
    /// Whether a listener may bind the wildcard.
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
    /// An enabled registration that leaves everything else to the defaults.
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

    /// The vsock port that this service's id encodes, if the id is on the vsock template.
    pub fn port(&self) -> Option<u32> {
        self.id.port()
    }

    /// The vsock port by which guests reach this service: the port of the template, or else the id's
    /// alias. AF_VSOCK in a guest's kernel has port numbers only.
    pub fn port_for_guests(&self) -> Option<u32> {
        self.id.port_for_guests()
    }

    /// The two services that Windows ships. Their ids, names and ports are reserved.
    ///
    /// Source: the key `GuestCommunicationServices` of a new Windows installation with Hyper-V.
    pub fn in_box() -> [Registration; 2] {
        IN_BOX.clone()
    }

    /// Whether this registration has the id of an in-box service.
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
