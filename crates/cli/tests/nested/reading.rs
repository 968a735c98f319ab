//! A second reading of the table in docs/tutorial.md, for the five partitions of [`Stage`](crate::stage): row by
//! row, with no code of the brokers.

use Place::{Box, Db, Edge, Host, Web};

/// A partition: the host, a container of it, a VM of it, and the containers in that VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Host,
    Edge,
    Web,
    Box,
    Db,
}

/// What an address says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    Wildcard,
    Parent,
    Children,
    Loopback,
    Broadcast,
    SiloHost,
    /// The id of a partition.
    The(Place),
    /// The name of a partition that the requester's broker knows.
    Named(Place),
    /// An id that no broker on the way knows.
    Nobody,
    /// A name that none knows.
    NoName,
}

/// The label of a refusal.
pub type Reason = &'static str;

impl Place {
    pub const ALL: [Self; 5] = [Host, Edge, Web, Box, Db];

    pub fn parent(self) -> Option<Self> {
        match self {
            Host => None,
            Edge | Web => Some(Host),
            Box | Db => Some(Web),
        }
    }

    fn grandparent(self) -> Option<Self> {
        self.parent()?.parent()
    }

    fn is_container(self) -> bool {
        matches!(self, Edge | Box | Db)
    }

    /// Whether an id of `other` is an address here: a child, a container in a child, or the host's parent's
    /// counterparts of these. The parent's id is one for a VM only, whose broker learned it by its uplink.
    fn may_name(self, other: Self) -> bool {
        other.parent() == Some(self)
            || other.grandparent() == Some(self)
            || self.grandparent() == Some(other)
            || (self, other) == (Web, Host)
    }
}

/// What a name stands for: to a partition itself and to its child it is a word, since they know no such id.
fn named(at: Place, other: Place) -> Meaning {
    if at == other {
        Meaning::Loopback
    } else if at.parent() == Some(other) {
        Meaning::Parent
    } else {
        Meaning::The(other)
    }
}

/// The partition that a connect from `from` goes to.
pub fn connects_to(from: Place, to: Meaning) -> Result<Place, Reason> {
    match to {
        Meaning::Wildcard => from.parent().ok_or("address_not_available"),
        Meaning::Parent => from.parent().ok_or("not_supported"),
        Meaning::Children | Meaning::Broadcast => Err("address_not_available"),
        Meaning::Loopback => Ok(from),
        Meaning::SiloHost if !from.is_container() => Err("address_not_available"),
        Meaning::SiloHost => from.parent().ok_or("not_supported"),
        Meaning::The(other) if from.may_name(other) => Ok(other),
        Meaning::Named(other) => connects_to(from, named(from, other)),
        Meaning::Nobody if from == Host => Err("partition_unknown"),
        // The owner of a registry may know which names exist.
        Meaning::NoName if !from.is_container() => Err("partition_unknown"),
        Meaning::The(_) | Meaning::Nobody | Meaning::NoName => Err("not_reachable"),
    }
}

/// Whether `at` may listen for connections from such partitions.
pub fn listens(at: Place, from: Meaning) -> Result<(), Reason> {
    match from {
        Meaning::Wildcard | Meaning::Loopback => Ok(()),
        Meaning::Parent => at.parent().map(drop).ok_or("not_supported"),
        Meaning::Children if at.is_container() => Err("not_supported"),
        Meaning::Children => Ok(()),
        Meaning::Broadcast => Err("address_not_available"),
        Meaning::SiloHost if at.is_container() => Ok(()),
        Meaning::SiloHost => Err("address_not_available"),
        Meaning::The(other) if at.may_name(other) => Ok(()),
        Meaning::Named(other) => listens(at, named(at, other)),
        Meaning::Nobody if at == Host => Err("partition_unknown"),
        Meaning::NoName if !at.is_container() => Err("partition_unknown"),
        Meaning::The(_) | Meaning::Nobody | Meaning::NoName => Err("not_reachable"),
    }
}

/// How well a listener of `at` suits a connect from `source`: the lowest is chosen; `None` if it does not
/// accept it.
pub fn accepts(at: Place, from: Meaning, source: Place) -> Option<u8> {
    let (accepts, rank) = match from {
        Meaning::Wildcard => (true, 2),
        Meaning::Parent | Meaning::SiloHost => (at.parent() == Some(source), 1),
        Meaning::Children => (source.parent() == Some(at), 1),
        Meaning::Loopback => (source == at, 1),
        // To a VM, its host's id is another spelling of its parent.
        Meaning::The(other) if at.parent() == Some(other) => (other == source, 1),
        Meaning::The(other) => (other == source, 0),
        Meaning::Named(other) => return accepts(at, named(at, other), source),
        Meaning::Broadcast | Meaning::Nobody | Meaning::NoName => (false, 0),
    };
    (accepts && listens(at, from).is_ok()).then_some(rank)
}
