//! The address table of docs/tutorial.md, row by row.

use hvsock_address::VmId;
use hvsock_fabric::{PartitionKind, Refusal};

use super::Model;

impl Model {
    pub fn connect_goes_to(&self, p: usize, vm: VmId) -> Result<usize, Refusal> {
        let me = &self.partitions[p];
        if vm == VmId::ZERO {
            return me.parent.ok_or(Refusal::AddressNotAvailable);
        }
        if vm == VmId::PARENT {
            return me.parent.ok_or(Refusal::NotSupported);
        }
        if vm == VmId::CHILDREN || vm == VmId::BROADCAST {
            return Err(Refusal::AddressNotAvailable);
        }
        if vm == VmId::LOOPBACK {
            // Only the host itself connects within the host.
            return if self.outer == Some(p) {
                Err(Refusal::NotReachable)
            } else {
                Ok(p)
            };
        }
        if vm == VmId::SILOHOST {
            if me.kind != PartitionKind::Container {
                return Err(Refusal::AddressNotAvailable);
            }
            return me.parent.ok_or(Refusal::NotSupported);
        }
        if let Some(outer) = self.outer_with_id(p, vm) {
            return Ok(outer);
        }
        self.partition_by_id(p, vm)
    }

    /// The outer partition, if this is its id in a request of the root.
    pub(super) fn outer_with_id(&self, p: usize, vm: VmId) -> Option<usize> {
        let outer = self.outer.filter(|_| p == 0)?;
        (self.partitions[outer].id == vm).then_some(outer)
    }

    pub(super) fn partition_by_id(&self, p: usize, id: VmId) -> Result<usize, Refusal> {
        for (q, other) in self.partitions.iter().enumerate() {
            if other.exists && other.id == id {
                if other.parent == Some(p) || (p != q && self.in_one_group(p, q)) {
                    return Ok(q);
                }
                if self.grandparent(p) == Some(q) || self.grandparent(q) == Some(p) {
                    return Ok(q);
                }
                return Err(Refusal::NotReachable);
            }
        }
        if self.partitions[p].parent.is_none() {
            Err(Refusal::PartitionUnknown)
        } else {
            Err(Refusal::NotReachable)
        }
    }

    /// Whether the two are siblings in one sibling group.
    pub fn in_one_group(&self, p: usize, q: usize) -> bool {
        let (one, other) = (&self.partitions[p], &self.partitions[q]);
        if one.parent.is_none() || one.parent != other.parent {
            return false;
        }
        for group in &one.groups {
            for its in &other.groups {
                if group == its {
                    return true;
                }
            }
        }
        false
    }

    pub(super) fn check_listen_address(&self, p: usize, vm: VmId) -> Result<(), Refusal> {
        let me = &self.partitions[p];
        let container = me.kind == PartitionKind::Container;
        if self.outer == Some(p) {
            // Only the host itself listens in the host.
            Err(Refusal::NotReachable)
        } else if vm == VmId::WILDCARD
            || vm == VmId::LOOPBACK
            || self.outer_with_id(p, vm).is_some()
        {
            Ok(())
        } else if vm == VmId::PARENT {
            me.parent.map(drop).ok_or(Refusal::NotSupported)
        } else if vm == VmId::CHILDREN {
            if container {
                Err(Refusal::NotSupported)
            } else {
                Ok(())
            }
        } else if vm == VmId::BROADCAST {
            Err(Refusal::AddressNotAvailable)
        } else if vm == VmId::SILOHOST {
            if !container {
                return Err(Refusal::AddressNotAvailable);
            }
            me.parent.map(drop).ok_or(Refusal::NotSupported)
        } else {
            self.partition_by_id(p, vm).map(drop)
        }
    }

    /// Whether a listener of `p` at `vm` accepts a connect from `q`. If so, returns its precedence: 0 is
    /// the most specific address.
    pub(super) fn accepts(&self, p: usize, vm: VmId, q: usize) -> Option<u8> {
        if vm == VmId::WILDCARD {
            return Some(2);
        }
        let accepts = if self.outer_with_id(p, vm).is_some() {
            self.outer == Some(q)
        } else if vm == VmId::LOOPBACK {
            p == q
        } else if vm == VmId::PARENT || vm == VmId::SILOHOST {
            self.partitions[p].parent == Some(q)
        } else if vm == VmId::CHILDREN {
            self.partitions[q].parent == Some(p)
        } else {
            return (self.partitions[q].id == vm).then_some(0);
        };
        accepts.then_some(1)
    }
}
