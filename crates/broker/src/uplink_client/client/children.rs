//! The containers of this machine that the host is told of.

use std::collections::{BTreeMap, HashMap};

use hvsock_address::VmId;
use hvsock_endpoint::uplink::{Announce, ChildId, ChildState, MAX_CHILDREN};

/// The containers by number. A number is used again only once all others have been: an answer that comes
/// late then names none.
#[derive(Debug, Default)]
pub(super) struct Children {
    by_number: BTreeMap<ChildId, Child>,
    by_id: HashMap<VmId, ChildId>,
    last: u32,
}

#[derive(Debug)]
struct Child {
    id: VmId,
    name: String,
    state: ChildState,
    /// Whether the host may know of it: it was announced on this uplink and not refused.
    announced: bool,
}

/// The host is told of as many containers as it accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Children {
    /// Adds a container.
    pub(super) fn add(
        &mut self,
        id: VmId,
        name: String,
        state: ChildState,
    ) -> Result<ChildId, Full> {
        if self.by_number.len() >= MAX_CHILDREN {
            return Err(Full);
        }
        let mut number = self.last;
        let number = loop {
            number = number.checked_add(1).unwrap_or(1);
            if !self.by_number.contains_key(&ChildId(number)) {
                break ChildId(number);
            }
        };
        self.last = number.0;
        self.by_id.insert(id, number);
        let child = Child {
            id,
            name,
            state,
            announced: false,
        };
        self.by_number.insert(number, child);
        Ok(number)
    }

    /// Removes a container. Returns its number, and whether the host may know of it.
    pub(super) fn remove(&mut self, id: VmId) -> Option<(ChildId, bool)> {
        let number = self.by_id.remove(&id)?;
        let child = self.by_number.remove(&number)?;
        Some((number, child.announced))
    }

    /// Sets a container's state. Returns its number if the host has to be told.
    pub(super) fn set_state(&mut self, id: VmId, state: ChildState) -> Option<ChildId> {
        let number = *self.by_id.get(&id)?;
        let child = self.by_number.get_mut(&number)?;
        let changed = std::mem::replace(&mut child.state, state) != state;
        (changed && child.announced).then_some(number)
    }

    /// The announcement of a container that is being announced.
    pub(super) fn announce(&mut self, number: ChildId) -> Option<Announce> {
        let child = self.by_number.get_mut(&number)?;
        child.announced = true;
        Some(Announce {
            child: number,
            state: child.state,
            id: child.id,
            name: child.name.clone(),
        })
    }

    /// The host has refused a container.
    pub(super) fn refused(&mut self, number: ChildId) {
        if let Some(child) = self.by_number.get_mut(&number) {
            child.announced = false;
        }
    }

    /// The host knows none any more.
    pub(super) fn forget_announced(&mut self) {
        for child in self.by_number.values_mut() {
            child.announced = false;
        }
    }

    /// All numbers.
    pub(super) fn numbers(&self) -> Vec<ChildId> {
        self.by_number.keys().copied().collect()
    }

    /// A container's number.
    pub(super) fn number(&self, id: VmId) -> Option<ChildId> {
        self.by_id.get(&id).copied()
    }

    /// A container's id.
    pub(super) fn id(&self, number: ChildId) -> Option<VmId> {
        self.by_number.get(&number).map(|child| child.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_not_used_again_soon_and_there_are_no_more_than_the_host_accepts() {
        let mut children = Children::default();
        let add = |children: &mut Children, n: u32| {
            children.add(
                VmId::of_container(&n.to_string()),
                n.to_string(),
                ChildState::Running,
            )
        };
        for n in 1..=MAX_CHILDREN as u32 {
            assert_eq!(add(&mut children, n), Ok(ChildId(n)));
        }
        assert_eq!(add(&mut children, 0), Err(Full));
        let first = VmId::of_container("1");
        assert_eq!(children.remove(first), Some((ChildId(1), false)));
        assert_eq!(add(&mut children, 1), Ok(ChildId(MAX_CHILDREN as u32 + 1)));
        // After the last number comes the first that is free.
        children.last = u32::MAX;
        children.remove(VmId::of_container("9"));
        assert_eq!(add(&mut children, 9), Ok(ChildId(1)));
    }
}
