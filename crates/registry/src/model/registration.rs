//! The registration of one service.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use hvsock_address::{ElementName, PartitionName, ServiceId, UPLINK_PORT};
use uuid::uuid;

use super::TransportSetting;

/// Who may perform one action. A list that is left out is inherited. The order of precedence is the
/// child's [`Override`], the [`Registration`], the built-in registration of the same service if there is
/// one ([`Registry::set_built_in`](super::Registry::set_built_in)), the [`Defaults`], then the built-in
/// rule.
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
    /// Names or ids of child partitions; `@group` matches a sibling group, `*` every child. In the registry
    /// of a virtual machine `parent` matches its host, as do the host's name and `*`.
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
    /// Whether in a child only root may listen, as on vsock ports below 1024.
    pub only_root_binds: Option<bool>,
    /// How the bytes of its connections travel.
    pub transport: Option<TransportSetting>,
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
    /// Replaces [`Registration::only_root_binds`].
    pub only_root_binds: Option<bool>,
    /// Replaces [`Registration::transport`].
    pub transport: Option<TransportSetting>,
}

impl Override {
    /// Whether it overrides nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The settings that this override has, and those of `base` for the rest.
    #[must_use]
    pub fn over(self, base: &Self) -> Self {
        Self {
            enabled: self.enabled.or(base.enabled),
            bind: self.bind.over(&base.bind),
            connect: self.connect.over(&base.connect),
            allow_wildcard_binds: self.allow_wildcard_binds.or(base.allow_wildcard_binds),
            only_root_binds: self.only_root_binds.or(base.only_root_binds),
            transport: self.transport.or(base.transport),
        }
    }
}

impl AccessRule {
    /// Whether it leaves everything to the levels below.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it has the rule for processes: a list of users or of groups.
    pub fn has_processes(&self) -> bool {
        self.users.is_some() || self.groups.is_some()
    }

    /// The lists that this rule has, and those of `base` for the rest. Users and groups are one rule.
    #[must_use]
    pub fn over(self, base: &Self) -> Self {
        let processes = match self.has_processes() {
            true => (self.users, self.groups),
            false => (base.users.clone(), base.groups.clone()),
        };
        Self {
            users: processes.0,
            groups: processes.1,
            partitions: self.partitions.or_else(|| base.partitions.clone()),
        }
    }

    /// The lists that differ from those of `base`, which [`over`](Self::over) adds again.
    #[must_use]
    pub fn without(mut self, base: &Self) -> Self {
        let lists = |rule: &Self| {
            let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
            rule.has_processes()
                .then(|| (list(&rule.users), list(&rule.groups)))
        };
        if lists(&self) == lists(base) {
            (self.users, self.groups) = (None, None);
        }
        if self.partitions == base.partitions {
            self.partitions = None;
        }
        self
    }
}

/// The settings for everything that a registration leaves out.
///
/// [`Defaults::default`] is the built-in rule: the registration's owner and every child may bind,
/// everyone may connect, listeners may bind the wildcard, any user of a child may listen there, and the
/// broker chooses the transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Who may listen.
    pub bind: AccessRule,
    /// Who may connect.
    pub connect: AccessRule,
    /// Whether a listener may bind the wildcard.
    pub allow_wildcard_binds: bool,
    /// Whether in a child only root may listen.
    pub only_root_binds: bool,
    /// How the bytes of connections travel.
    pub transport: TransportSetting,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            bind: AccessRule::default(),
            connect: AccessRule::default(),
            allow_wildcard_binds: true,
            only_root_binds: false,
            transport: TransportSetting::Auto,
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
            only_root_binds: None,
            transport: None,
            vm: BTreeMap::new(),
            owner: None,
            creator: None,
            purpose: None,
            lease: false,
        }
    }

    /// This registration with the rules that it leaves out taken from `built_in`, the built-in
    /// registration of the same service.
    #[must_use]
    pub fn over(self, built_in: &Registration) -> Self {
        let own = self.with_overrides_of(built_in);
        Self {
            bind: own.bind.over(&built_in.bind),
            connect: own.connect.over(&built_in.connect),
            allow_wildcard_binds: own.allow_wildcard_binds.or(built_in.allow_wildcard_binds),
            only_root_binds: own.only_root_binds.or(built_in.only_root_binds),
            transport: own.transport.or(built_in.transport),
            ..own
        }
    }

    /// This registration without the rules that it inherits anyway from `built_in`, the built-in
    /// registration of the same service.
    #[must_use]
    pub fn without(self, built_in: &Registration) -> Self {
        let flag = |own: Option<bool>, base| own.filter(|_| own != base);
        let own = self.with_overrides_of(built_in);
        Self {
            bind: own.bind.without(&built_in.bind),
            connect: own.connect.without(&built_in.connect),
            allow_wildcard_binds: flag(own.allow_wildcard_binds, built_in.allow_wildcard_binds),
            only_root_binds: flag(own.only_root_binds, built_in.only_root_binds),
            transport: own
                .transport
                .filter(|_| own.transport != built_in.transport),
            ..own
        }
    }

    /// Whether it is `built_in`, the built-in registration of the same service, and changes nothing.
    pub fn is_unchanged(&self, built_in: &Registration) -> bool {
        self.clone().without(built_in) == built_in.clone().without(built_in)
    }

    /// Adds the settings for single children that `built_in` has and this registration has not.
    fn with_overrides_of(mut self, built_in: &Registration) -> Self {
        for (child, base) in &built_in.vm {
            let own = self.vm.remove(child).unwrap_or_default();
            self.vm.insert(child.clone(), own.over(base));
        }
        self
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

    /// The broker's own service for guests, at [`UPLINK_PORT`]. It is in no registry; its id, name and port are
    /// reserved.
    pub fn of_broker() -> Registration {
        OF_BROKER.clone()
    }

    /// Whether this registration has an id that cannot be registered: that of an in-box service or of the broker.
    pub fn is_reserved(&self) -> bool {
        reserved().any(|one| one.id == self.id)
    }
}

/// The services that nobody may register.
pub(super) fn reserved() -> impl Iterator<Item = &'static Registration> {
    IN_BOX.iter().chain([&*OF_BROKER])
}

static OF_BROKER: LazyLock<Registration> = LazyLock::new(|| Registration {
    owner: Some("hvsock".to_owned()),
    creator: Some("hvsock broker".to_owned()),
    purpose: Some("Look-ups of guests, and the uplinks of their brokers".to_owned()),
    ..Registration::new(
        ServiceId::from_port(UPLINK_PORT),
        ElementName::new("hvsock broker").expect("a constant that is a name"),
    )
});

static IN_BOX: LazyLock<[Registration; 2]> = LazyLock::new(|| {
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
