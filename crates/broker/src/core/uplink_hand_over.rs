//! Guests' connections to the broker for another process. An uplink goes on there: its containers stay, with their
//! connections, and the guest's broker notices nothing.

use std::os::fd::OwnedFd;
use std::time::Instant;

use hvsock_fabric::{Changes, PartitionKey, PartitionKind};
use mio::Interest;
use mio::unix::SourceFd;

use super::state::Core;
use super::tokens::uplink_token;
use super::uplink_server::DESCRIPTORS;
use super::uplinks::snapshot::{ClientSnapshot, UPLINKS_SNAPSHOT_VERSION, UplinksSnapshot};
use crate::budget::Owner;
use crate::handover::snapshot::{check_version, ensure};
use crate::handover::{Exports, HandoverError, Imports};
use crate::uplink::GuestStream;

impl Core {
    /// The connections as a value.
    ///
    /// # Errors
    ///
    /// If a descriptor or buffer cannot be passed on.
    pub(super) fn uplinks_snapshot(
        &self,
        exports: &mut Exports,
        now: Instant,
    ) -> Result<UplinksSnapshot, HandoverError> {
        let mut clients = Vec::new();
        for (index, client) in self.uplink_clients.iter() {
            let uplink = self.uplinks.get(client.vm);
            let uplink = uplink.filter(|uplink| uplink.client == index);
            clients.push(ClientSnapshot::of(client, uplink, exports, now)?);
        }
        Ok(UplinksSnapshot {
            version: UPLINKS_SNAPSHOT_VERSION,
            opened: self.uplink_clients.opened(),
            clients,
        })
    }

    /// Adds the connections of another process, whose VMs and links are there. Reads none.
    ///
    /// # Errors
    ///
    /// If the snapshot is damaged.
    pub(super) fn resume_uplinks(
        &mut self,
        snapshot: UplinksSnapshot,
        imports: &mut Imports,
        now: Instant,
    ) -> Result<(), HandoverError> {
        let UplinksSnapshot {
            version,
            opened,
            clients,
        } = snapshot;
        check_version(version, UPLINKS_SNAPSHOT_VERSION)?;
        for mut client in clients {
            let vm = PartitionKey::from_u64(client.vm);
            ensure(self.vms.contains(vm), "a guest's connection is of no VM")?;
            let has_room = self.uplink_clients.has_room(vm, client.source_port);
            ensure(has_room, "a guest has too many connections to the broker")?;
            let stream = self.resume_stream(vm, &client, imports)?;
            let index = self.uplink_clients.next_index();
            let (fd, both) = (stream.raw_fd(), Interest::READABLE | Interest::WRITABLE);
            let watched = self
                .registry
                .register(&mut SourceFd(&fd), uplink_token(index), both);
            watched.map_err(HandoverError::io("watch a guest's connection"))?;
            let uplink = client.client(vm, stream, now)?;
            let index = self.uplink_clients.insert(uplink);
            if let Some(uplink) = client.uplink.take() {
                let needs_socket = !self.capabilities(vm).byte_counts;
                let (fabric, descriptors) = (&self.fabric, &self.descriptors);
                let charge =
                    || needs_socket.then(|| descriptors.charge_beyond(Owner::Partition(vm), 1));
                let is_child = |key| {
                    let child = fabric.partition(key);
                    child.is_some_and(|child| {
                        child.kind() == PartitionKind::Container && child.parent() == Some(vm)
                    })
                };
                let place = (vm, index);
                self.uplinks
                    .restore(place, uplink, imports, (charge, is_child), now)?;
            }
        }
        self.uplink_clients.resume_opened(opened);
        let keys = self.fabric.partitions().map(|(key, _)| key);
        let mut nested = keys.filter(|key| self.is_nested(*key));
        let are_announced = nested.all(|key| self.uplinks.number(key).is_some());
        ensure(are_announced, "a container in a VM is of no uplink")?;
        Ok(())
    }

    fn resume_stream(
        &self,
        vm: PartitionKey,
        client: &ClientSnapshot,
        imports: &mut Imports,
    ) -> Result<GuestStream, HandoverError> {
        let socket: OwnedFd = imports.fd(client.socket)?;
        let charge = self
            .descriptors
            .charge_beyond(Owner::Partition(vm), DESCRIPTORS);
        let received = imports.blob(client.received)?;
        let unsent = imports.blob(client.unsent)?;
        Ok(GuestStream::resume(socket, charge, &received, unsent))
    }

    /// Serves the connections of another process from now on.
    pub(super) fn begin_uplinks(&mut self) {
        self.update_mirrors(&Changes::All);
        let indexes: Vec<usize> = self.uplink_clients.iter().map(|(index, _)| index).collect();
        for index in indexes {
            // What has arrived, or has been read already, causes no event.
            self.uplink_clients.enqueue(index);
        }
    }
}
