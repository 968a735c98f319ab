//! Adding VMs.

use hvsock_address::{PartitionName, PartitionRef, VmId};
use hvsock_virtio::GuestCid;

use super::{ControlError, Handle, checked_spec, invalid};
use crate::guest_link::LinkFactory;
use crate::model::{NewVm, Partition};
use crate::stores::{PartitionEntry, PartitionFiles, VmEntry, VmmUser};

impl Handle {
    /// Adds a VM persistently and opens the vhost-user socket for its VMM. Without an id it gets a
    /// random one, without a CID the lowest free one.
    ///
    /// # Errors
    ///
    /// As [`add_container`](Self::add_container), and [`ControlError::CidTaken`] if another VM has the
    /// CID, [`ControlError::Limit`] if no CID is free, [`ControlError::Invalid`] for an invalid CID or
    /// an unknown user.
    #[doc(alias = "vhost-user")]
    pub fn add_vm(&self, new: NewVm) -> Result<Partition, ControlError> {
        self.add_vm_by(new, |handle, files, name, entry| {
            handle.add_persistent(files, name, entry)
        })
    }

    /// Adds a VM whose connections reach its guest by `link` instead of the vhost-user device. The VM
    /// lasts as long as the broker: it has no file, because a link cannot be restored from one.
    ///
    /// [`guest_link`](crate::guest_link) says how to make a link.
    ///
    /// # Errors
    ///
    /// As [`add_vm`](Self::add_vm), and [`ControlError::System`] if the link cannot be opened.
    pub fn add_vm_with_link(
        &self,
        new: NewVm,
        link: impl LinkFactory + 'static,
    ) -> Result<Partition, ControlError> {
        let link: Box<dyn LinkFactory> = Box::new(link);
        self.add_vm_by(new, |handle, _, name, entry| {
            let spec = checked_spec(name.clone(), entry)?;
            handle.add_partition(entry, spec, Some(link))?;
            handle.partition(&PartitionRef::Name(name))
        })
    }

    /// Chooses the id and CID of a new VM and has `add` add it, while the folder of partition files is
    /// locked.
    fn add_vm_by(
        &self,
        new: NewVm,
        add: impl FnOnce(
            &Self,
            &mut PartitionFiles,
            PartitionName,
            &PartitionEntry,
        ) -> Result<Partition, ControlError>,
    ) -> Result<Partition, ControlError> {
        let id = new.id.unwrap_or_else(VmId::random);
        let requested = new.cid.map(|cid| GuestCid::try_from(u64::from(cid)));
        let requested = requested.transpose().map_err(invalid)?;
        let user = new.user.map(VmmUser::find).transpose();
        let user = user.map_err(ControlError::Invalid)?;
        // Locked from here on, so that a free CID stays free until the VM has it.
        let mut files = self.partitions.lock();
        let cid = match requested {
            Some(cid) => cid,
            None => {
                let free = self.call(|core| core.free_cid())?;
                free.ok_or(ControlError::Limit("CIDs"))?
            }
        };
        let vm = VmEntry {
            cid,
            unsealed_memory: new.unsealed_memory,
            user,
        };
        let entry = PartitionEntry::vm(id, new.groups, vm);
        add(self, &mut files, new.name, &entry)
    }
}
