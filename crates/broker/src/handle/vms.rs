//! Adding VMs.

use hvsock_address::{PartitionRef, VmId};
use hvsock_virtio::GuestCid;

use super::partitions::check_id;
use super::{ControlError, Handle, invalid};
use crate::guest_link::LinkFactory;
use crate::model::{LinkSpec, NewVm, Partition, VmSpec};
use crate::stores::{PartitionEntry, PartitionFiles, VmEntry, VmmUser, check_spec};

impl Handle {
    /// Adds a VM persistently and opens the link to its guest, such as the vhost-user socket for its
    /// VMM. Without an id it gets a random one, and for a vhost-user device without a CID the lowest free
    /// one.
    ///
    /// # Errors
    ///
    /// As [`add_container`](Self::add_container), and [`ControlError::CidTaken`] if another VM has the
    /// CID, [`ControlError::Limit`] if no CID is free, [`ControlError::Invalid`] for an invalid CID or
    /// an unknown user.
    #[doc(alias = "vhost-user")]
    pub fn add_vm(&self, new: NewVm) -> Result<Partition, ControlError> {
        let mut files = self.partitions.lock();
        let (entry, added) = self.add_vm_to_core(&files, new, None)?;
        self.save(&mut files, &entry)?;
        Ok(added)
    }

    /// Adds a VM whose connections reach its guest by `link` instead of one of the built-in links. The VM
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
        let files = self.partitions.lock();
        let (_, added) = self.add_vm_to_core(&files, new, Some(link))?;
        Ok(added)
    }

    /// Adds a VM to the core, which chooses its CID, while the folder of partition files is locked.
    /// Returns what its file has to contain.
    fn add_vm_to_core(
        &self,
        files: &PartitionFiles,
        new: NewVm,
        link: Option<Box<dyn LinkFactory>>,
    ) -> Result<(PartitionEntry, Partition), ControlError> {
        let name = new.name.check_unnested();
        name.map_err(|error| ControlError::Invalid(error.to_string()))?;
        let id = new.id.unwrap_or_else(VmId::random);
        let spec = VmSpec {
            cid: new.cid,
            link: new.link,
            unsealed_memory: new.unsealed_memory,
            user: new.user,
        };
        let requested = spec.cid.map(|cid| GuestCid::try_from(u64::from(cid)));
        let requested = requested.transpose().map_err(invalid)?;
        let user = spec.user.clone().map(VmmUser::find).transpose();
        let user = user.map_err(ControlError::Invalid)?;
        check_spec(&spec).map_err(ControlError::Invalid)?;
        check_id(id)?;
        let mut entry = PartitionEntry {
            name: new.name,
            id,
            groups: new.groups,
            cdi: true,
            ephemeral: false,
            vm: Some(spec.clone()),
        };
        let (partition, name) = (entry.spec(), PartitionRef::Name(entry.name.clone()));
        let (reserved, wanted) = (files.reserved_cids(), name.clone());
        let added = self.call(move |core| {
            let cid = match (requested, &spec.link) {
                (None, LinkSpec::VhostUser) => {
                    let free = core.free_cid(&reserved);
                    Some(free.ok_or(ControlError::Limit("CIDs"))?)
                }
                (requested, _) => requested,
            };
            let vm = VmEntry::new(spec, cid, user);
            let settings = vm.spec.clone();
            core.add_vm(partition, vm, link)?;
            Ok::<_, ControlError>((settings, core.partition(&wanted)))
        });
        let (settings, added) = added??;
        entry.vm = Some(settings);
        Ok((
            entry,
            added.ok_or_else(|| ControlError::unknown_partition(&name))?,
        ))
    }
}
