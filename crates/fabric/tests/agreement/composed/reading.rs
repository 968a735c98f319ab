//! The address table of docs/tutorial.md for the host, a virtual machine, the containers in it and one on
//! the host, read without any fabric: where an address leads, whose registries are on the way, and
//! which listener accepts.

use std::collections::BTreeMap;

use hvsock_address::VmId;

use super::vm_id;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Host,
    Vm,
    /// Two containers in the virtual machine.
    Box,
    App,
    /// A container on the host.
    C,
}

/// An address as the requester writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    Word(VmId),
    IdOf(Place),
    Unknown,
}

/// A registration.
#[derive(Clone, Debug)]
pub struct Entry {
    pub enabled: bool,
    pub bind: Option<Vec<String>>,
    pub connect: Option<Vec<String>>,
    /// Users who may connect.
    pub users: Option<Vec<String>>,
    pub wildcard: bool,
    /// By partition: whether it is enabled, and which partitions may connect.
    pub over: BTreeMap<String, (Option<bool>, Option<Vec<String>>)>,
}

#[derive(Clone, Debug)]
pub struct Listener {
    pub at: Place,
    pub address: Address,
    pub service: usize,
    pub is_open: bool,
}

/// The number of the listener, or the label of the refusal.
pub type Outcome = Result<usize, &'static str>;

pub struct Reading {
    /// The registrations of the host and of the virtual machine.
    entries: [[Option<Entry>; 2]; 2],
    exists: [bool; 2],
    announced: [bool; 2],
    pub has_uplink: bool,
    pub listeners: Vec<Listener>,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            entries: Default::default(),
            exists: [false; 2],
            announced: [false; 2],
            has_uplink: true,
            listeners: vec![],
        }
    }
}

impl Place {
    pub const ALL: [Self; 5] = [Self::Host, Self::Vm, Self::Box, Self::App, Self::C];

    pub fn is_in_vm(self) -> bool {
        matches!(self, Self::Box | Self::App)
    }

    fn parent(self) -> Option<Self> {
        match self {
            Self::Host => None,
            Self::Vm | Self::C => Some(Self::Host),
            Self::Box | Self::App => Some(Self::Vm),
        }
    }

    fn is_container(self) -> bool {
        self.is_in_vm() || self == Self::C
    }

    /// The names that a registry knows a partition by, the most specific first.
    fn names_at(self, owner: Self) -> &'static [&'static str] {
        match (owner, self) {
            (_, Self::Host) => &["tower"],
            (_, Self::Vm) => &["web"],
            (_, Self::C) => &["c"],
            (Self::Host, Self::Box) => &["web/box", "web"],
            (Self::Host, Self::App) => &["web/app", "web"],
            (_, Self::Box) => &["box"],
            (_, Self::App) => &["app"],
        }
    }
}

impl Address {
    pub fn all() -> Vec<Self> {
        let words = [
            VmId::WILDCARD,
            VmId::PARENT,
            VmId::CHILDREN,
            VmId::LOOPBACK,
            VmId::BROADCAST,
            VmId::SILOHOST,
        ];
        let ids = Place::ALL.map(Self::IdOf);
        let mut all: Vec<_> = words.into_iter().map(Self::Word).collect();
        all.extend(ids);
        all.push(Self::Unknown);
        all
    }
}

impl Reading {
    pub fn set(&mut self, owner: Place, service: usize, entry: Option<Entry>) {
        self.entries[usize::from(owner == Place::Vm)][service] = entry;
    }

    pub fn set_container(&mut self, child: Place, exists: bool, announced: bool) {
        let n = usize::from(child == Place::App);
        self.exists[n] = exists;
        self.announced[n] = announced;
        // A container takes its listeners along.
        for listener in &mut self.listeners {
            listener.is_open &= listener.at != child || exists;
        }
    }

    /// The numbers of the open listeners.
    pub fn open(&self) -> Vec<usize> {
        let all = 0..self.listeners.len();
        all.filter(|n| self.listeners[*n].is_open).collect()
    }

    fn exists(&self, place: Place) -> bool {
        !place.is_in_vm() || self.exists[usize::from(place == Place::App)]
    }

    fn is_announced(&self, place: Place) -> bool {
        !place.is_in_vm() || self.announced[usize::from(place == Place::App)]
    }

    /// The id that a process in `from` writes for an address.
    pub fn id(&self, from: Place, address: Address) -> VmId {
        let in_vm = from == Place::Vm || from.is_in_vm();
        match address {
            Address::Word(id) => id,
            Address::IdOf(place) if in_vm => place.own_id(),
            Address::IdOf(place) => place.id_on_host(),
            Address::Unknown => vm_id(77),
        }
    }

    /// The partition that a connect leads to.
    fn target(&self, from: Place, address: Address) -> Result<Place, &'static str> {
        let to = match address {
            Address::Word(VmId::WILDCARD) => return from.parent().ok_or("address_not_available"),
            Address::Word(VmId::PARENT) => return from.parent().ok_or("not_supported"),
            Address::Word(VmId::LOOPBACK) => return Ok(from),
            Address::Word(VmId::SILOHOST) if from.is_container() => {
                return from.parent().ok_or("not_supported");
            }
            Address::Word(_) => return Err("address_not_available"),
            Address::Unknown => None,
            Address::IdOf(place) => Some(place),
        };
        // Only the host learns that an id is unknown.
        let unknown = match from {
            Place::Host => "partition_unknown",
            _ => "not_reachable",
        };
        let to = to.ok_or(unknown)?;
        let is_known = match from {
            Place::Host | Place::C => self.is_announced(to),
            _ => self.exists(to) && to != Place::C,
        };
        if !is_known {
            return Err(unknown);
        }
        let reaches = match (from, to) {
            // A child; a container in a child.
            (Place::Host, to) => to != Place::Host,
            // The one parent whose id the child knows.
            (Place::Vm, to) => to == Place::Host || to.is_in_vm(),
            // The parent's parent; a sibling of the same group.
            (Place::Box | Place::App, to) => to == Place::Host || to.is_in_vm() && to != from,
            (Place::C, to) => to == Place::Vm,
        };
        reaches.then_some(to).ok_or("not_reachable")
    }

    /// The partitions whose registries a connect passes, in order.
    fn owners(from: Place, to: Place) -> &'static [Place] {
        let is_inside = |place: Place| place == Place::Vm || place.is_in_vm();
        match (from, to) {
            _ if from == to => &[],
            (Place::Host, to) if to.is_in_vm() => &[Place::Host, Place::Vm],
            (from, Place::Host) if from.is_in_vm() => &[Place::Vm, Place::Host],
            _ if is_inside(from) && is_inside(to) => &[Place::Vm],
            _ => &[Place::Host],
        }
    }

    fn entry(&self, owner: Place, service: usize) -> Option<&Entry> {
        self.entries[usize::from(owner == Place::Vm)][service].as_ref()
    }

    /// The verdict of a connect, and the listener that accepts.
    pub fn connect(
        &self,
        from: Place,
        address: Address,
        service: usize,
        is_operator: bool,
    ) -> Outcome {
        if !self.exists(from) {
            return Err("gone");
        }
        let to = self.target(from, address)?;
        let owners = Self::owners(from, to);
        for (hop, owner) in owners.iter().enumerate() {
            if hop > 0 && !self.is_announced(from) {
                return Err("not announced");
            }
            let entry = self.entry(*owner, service).ok_or("unregistered")?;
            let ends = [from, to].into_iter().filter(|end| end != owner);
            for end in ends.clone() {
                entry.is_enabled(end.names_at(*owner))?;
            }
            for end in ends {
                entry.may_connect(from, *owner, end, is_operator)?;
            }
            // Where a listener's broker is another one, this registry says now whether it may listen.
            let is_last = hop + 1 == owners.len();
            let in_vm = to == Place::Vm || to.is_in_vm();
            if in_vm && *owner == Place::Host {
                entry.may_bind(to, *owner)?;
            }
            if is_last {
                return self.listener(from, to, service, Some((*owner, entry)));
            }
        }
        // Within one partition nothing but its own registry can say no.
        let own = match to {
            Place::Host | Place::Vm => self.entry(to, service),
            _ => None,
        };
        if own.is_some_and(|entry| !entry.enabled) {
            return Err("disabled");
        }
        self.listener(from, to, service, None)
    }

    /// The listener with the most specific address that accepts, of those that may.
    fn listener(
        &self,
        from: Place,
        to: Place,
        service: usize,
        rules: Option<(Place, &Entry)>,
    ) -> Outcome {
        let mut accepting = vec![];
        for n in self.open() {
            let it = &self.listeners[n];
            if it.at == to
                && it.service == service
                && let Some(rank) = Self::accepts(to, it.address, from)
            {
                accepting.push((rank, n));
            }
        }
        accepting.sort_unstable();
        let mut refusal = Err("no_listener");
        for (at, (rank, n)) in accepting.into_iter().enumerate() {
            // Without an uplink the virtual machine does not know what the host allows it.
            let known = rules.filter(|(owner, _)| {
                let of_host = *owner == Place::Host && to == Place::Vm;
                self.has_uplink || !of_host
            });
            let may = known.map_or(Ok(()), |(owner, entry)| {
                entry.may_bind(to, owner)?;
                match rank == 2 && !entry.wildcard {
                    true => Err("wildcard_not_allowed"),
                    false => Ok(()),
                }
            });
            match may {
                Ok(()) => return Ok(n),
                Err(label) if at == 0 => refusal = Err(label),
                Err(_) => {}
            }
        }
        refusal
    }

    /// Whether a listener in `at` accepts from a partition, and how specific its address is: 0 is the
    /// most specific.
    fn accepts(at: Place, address: Address, from: Place) -> Option<u8> {
        match address {
            Address::Word(VmId::WILDCARD) => Some(2),
            Address::Word(VmId::PARENT | VmId::SILOHOST) => {
                (at.parent() == Some(from) || Self::in_the_hosts_name(at, from)).then_some(1)
            }
            Address::Word(VmId::CHILDREN) => (from.parent() == Some(at)).then_some(1),
            Address::Word(VmId::LOOPBACK) => (from == at).then_some(1),
            // The id of its parent means PARENT to the virtual machine.
            Address::IdOf(Place::Host) if at == Place::Vm => {
                (from == Place::Host || Self::in_the_hosts_name(at, from)).then_some(1)
            }
            Address::IdOf(place) => (place == from).then_some(0),
            Address::Word(_) | Address::Unknown => None,
        }
    }

    /// A sibling of a virtual machine reaches it through the host, in whose name it arrives.
    fn in_the_hosts_name(at: Place, from: Place) -> bool {
        at == Place::Vm && from == Place::C
    }

    /// The verdict of a listen by root for one partition, which is not the place itself. `None` for other
    /// addresses: they concern several partitions, or are tested in one fabric.
    pub fn listen(
        &self,
        at: Place,
        address: Address,
        service: usize,
    ) -> Option<Result<(), &'static str>> {
        let peer = match address {
            Address::Word(VmId::PARENT) => at.parent()?,
            Address::Word(VmId::SILOHOST) if at.is_container() => at.parent()?,
            Address::IdOf(_) => match self.target(at, address) {
                Ok(peer) => peer,
                Err(label) => return Some(Err(label)),
            },
            _ => return None,
        };
        let same = |it: &&Listener| it.at == at && it.service == service && it.is_open;
        let is_taken = self.listeners.iter().filter(same).any(|it| {
            let accepts = |place| Self::accepts(at, it.address, place);
            accepts(peer).is_some_and(|rank| rank < 2)
                && accepts(peer) == Self::accepts(at, address, peer)
        });
        let allowed = self.may_listen(at, peer, service);
        Some(allowed.and(if is_taken {
            Err("address_in_use")
        } else {
            Ok(())
        }))
    }

    /// Whether the registry nearest to the listener lets it accept from a partition.
    fn may_listen(&self, at: Place, peer: Place, service: usize) -> Result<(), &'static str> {
        let owners = Self::owners(peer, at);
        let Some(owner) = owners.last() else {
            return Ok(());
        };
        if at == Place::Vm && *owner == Place::Host && !self.has_uplink {
            return Ok(());
        }
        // A listener of the host for a container in a VM needs the host's registry, not the VM's.
        let owner = if at == Place::Host {
            Place::Host
        } else {
            *owner
        };
        let entry = self.entry(owner, service).ok_or("unregistered")?;
        for end in [at, peer].into_iter().filter(|end| *end != owner) {
            entry.is_enabled(end.names_at(owner))?;
        }
        entry.may_bind(at, owner)
    }

    /// A listener of the virtual machine for the host that the host does not allow, though that is known.
    pub fn parent_listener_without_permission(&self) -> Option<&Listener> {
        let mut open = self.open().into_iter().map(|n| &self.listeners[n]);
        open.find(|it| {
            let is_for_host = matches!(
                it.address,
                Address::Word(VmId::PARENT) | Address::IdOf(Place::Host)
            );
            let allowed = self.may_listen(it.at, Place::Host, it.service);
            it.at == Place::Vm && is_for_host && allowed.is_err()
        })
    }
}

impl Entry {
    fn is_enabled(&self, names: &[&str]) -> Result<(), &'static str> {
        let over = |name: &&str| self.over.get(*name)?.0;
        match names.iter().find_map(over).unwrap_or(self.enabled) {
            true => Ok(()),
            false => Err("disabled"),
        }
    }

    /// Whether the requester may connect, by the rule for one of the two ends.
    fn may_connect(
        &self,
        from: Place,
        owner: Place,
        end: Place,
        is_operator: bool,
    ) -> Result<(), &'static str> {
        let allowed = if from == owner {
            let users = self.users.as_ref();
            is_operator || users.is_none_or(|users| users.iter().any(|user| user == "bob"))
        } else {
            let over = |name: &&str| self.over.get(*name)?.1.as_ref();
            let list = end.names_at(owner).iter().find_map(over);
            let list = list.or(self.connect.as_ref());
            is_listed(list, from.names_at(owner))
        };
        allowed.then_some(()).ok_or("denied")
    }

    /// Whether root in a partition may listen.
    fn may_bind(&self, at: Place, owner: Place) -> Result<(), &'static str> {
        let allowed = at == owner || is_listed(self.bind.as_ref(), at.names_at(owner));
        allowed.then_some(()).ok_or("denied")
    }
}

/// Whether a list has one of these names. Without a list everybody is in it.
fn is_listed(list: Option<&Vec<String>>, names: &[&str]) -> bool {
    let has = |entry: &String| entry == "*" || names.contains(&entry.as_str());
    list.is_none_or(|list| list.iter().any(has))
}
