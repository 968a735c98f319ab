//! What processes ask about vsock context ids (CIDs): whose one is, and which one a partition has.

use hvsock_address::{SockAddrVm, VmId};
use hvsock_endpoint::BrokerMessage;
use hvsock_fabric::{PartitionKey, PartitionKind, Refusal};
use hvsock_sys::vsock;
use hvsock_virtio::GuestCid;

use super::requests::SessionState;
use super::sessions::Session;
use super::state::Core;
use super::vms::VmRecord;
use crate::data_path::ProcessSocket;
use crate::stores::CidSpace;

impl Core {
    /// Gives the partitions that the broker has from its start on their CIDs: the host of this virtual
    /// machine, and this virtual machine, which has the one of its kernel.
    pub(super) fn assign_own_cids(&mut self) {
        let (own, outer) = (self.fabric.root(), self.fabric.outer());
        let id = |key| Some(self.fabric.partition(key)?.vm_id());
        let (own_id, outer_id) = (id(own), outer.and_then(id));
        if let (Some(outer), Some(own_id), Some(outer_id)) = (outer, own_id, outer_id) {
            let of_kernel = vsock::local_cid().ok();
            let of_kernel = of_kernel.and_then(|cid| GuestCid::try_from(u64::from(cid)).ok());
            let space = CidSpace::Kernel(None);
            self.cids.insert_vm(own, own_id, of_kernel, Some(&space));
            self.cids.insert(outer, outer_id);
        }
    }

    /// Gives a new partition its CID.
    pub(super) fn assign_cid(&mut self, key: PartitionKey) {
        let Some(partition) = self.fabric.partition(key) else {
            return;
        };
        let id = partition.vm_id();
        match self.vms.get(key).map(VmRecord::settings) {
            Some(vm) => {
                let taken = vm.cid_key();
                let space = taken.as_ref().map(|taken| &taken.space);
                self.cids.insert_vm(key, id, vm.cid, space);
            }
            None => self.cids.insert(key, id),
        }
    }

    /// The id by which processes of `from` reach the partition with a CID, given as a decimal number.
    pub(super) fn partition_with_cid(
        &self,
        from: PartitionKey,
        number: &str,
    ) -> Result<VmId, Refusal> {
        let has_digits_only = number.bytes().all(|byte| byte.is_ascii_digit());
        let cid = number.parse().ok().filter(|_| has_digits_only);
        let cid: u32 = cid.ok_or_else(|| self.unknown_partition(from))?;
        let host = match self.parent_of(from) {
            Some(_) => VmId::PARENT,
            None => VmId::LOOPBACK,
        };
        match cid {
            SockAddrVm::CID_LOCAL => Ok(VmId::LOOPBACK),
            SockAddrVm::CID_HOST => Ok(host),
            cid => {
                let key = self.cids.partition(cid);
                let id = key.and_then(|key| self.reached_as(from, key));
                id.ok_or_else(|| self.unknown_partition(from))
            }
        }
    }

    /// Answers a process that asks for the CID of a partition.
    pub(super) fn answer_cid_of(
        &mut self,
        session: Session<ProcessSocket>,
        partition: VmId,
    ) -> SessionState {
        match self.cid_of(session.partition, partition) {
            Ok(cid) => match self.answer(&session, &BrokerMessage::Cid { cid }) {
                true => self.check_queries(session),
                false => SessionState::Closed,
            },
            Err(refusal) => self.refuse_name(&session, &refusal),
        }
    }

    /// The CID of the partition that a process of `from` connects to by this id.
    fn cid_of(&self, from: PartitionKey, id: VmId) -> Result<u32, Refusal> {
        let own = self.fabric.partition(from);
        let is_container = own.is_some_and(|own| own.kind() == PartitionKind::Container);
        let parent = |otherwise| match self.parent_of(from) {
            Some(_) => Ok(SockAddrVm::CID_HOST),
            None => Err(otherwise),
        };
        match id {
            VmId::LOOPBACK if self.parent_of(from).is_none() => Ok(SockAddrVm::CID_HOST),
            VmId::LOOPBACK => self.cids.of(from).ok_or(Refusal::PartitionOff),
            VmId::PARENT => parent(Refusal::NotSupported),
            VmId::SILOHOST if is_container => parent(Refusal::NotSupported),
            id if id.is_well_known() => Err(Refusal::AddressNotAvailable),
            id => {
                let key = self.fabric.by_vm_id(id);
                if let Some(key) = key.filter(|key| Some(*key) == self.parent_of(from))
                    && Some(key) == self.fabric.outer()
                {
                    return Ok(SockAddrVm::CID_HOST);
                }
                let key = key.filter(|key| self.reached_as(from, *key) == Some(id));
                let cid = key.and_then(|key| self.cids.of(key));
                cid.ok_or_else(|| self.unknown_partition(from))
            }
        }
    }

    fn parent_of(&self, partition: PartitionKey) -> Option<PartitionKey> {
        self.fabric.partition(partition)?.parent()
    }

    /// The id by which processes of `from` reach a partition.
    fn reached_as(&self, from: PartitionKey, key: PartitionKey) -> Option<VmId> {
        let name = self.fabric.partition(key)?.name();
        self.fabric.vm_id_by_name(from, name)
    }
}
