//! The core of a successor, made from the tables of another process.
//!
//! Everything here happens while that process may still go on: nothing is read, written or accepted, no file is
//! touched, and nobody is told anything. [`Core::begin`] acts, once this process has committed.

use std::collections::BTreeMap;
use std::time::Instant;

use hvsock_address::VmId;
use hvsock_fabric::{Fabric, Operators, Partition, PartitionKey, PartitionKind};

use super::arenas::Arenas;
use super::arenas::snapshot::Monitors;
use super::cids::Cids;
use super::connections::Connections;
use super::connections::snapshot::Counters;
use super::container_states::{BOUND, CONTAINER};
use super::containers::Containers;
use super::counters::MetricsCounters;
use super::guest_arenas::GuestArenas;
use super::hand_over::{CoreDocument, of};
use super::leases::Leases;
use super::left_folders::LeftFolders;
use super::listeners::Listeners;
use super::liveness::Liveness;
use super::offers::Offers;
use super::sessions::{Role, Sessions};
use super::state::Core;
use super::text_listeners::TextListeners;
use super::vms::Vms;
use crate::data_path::ProcessSocket;
use crate::guest_link::Resuming;
use crate::handover::{HandoverError, Imports, LinkDocument};
use crate::links;

impl Core {
    /// Puts the tables of a document in the place of this core's, which has served nobody yet. Watches
    /// descriptors, but reads none. `links` has the state of each VM's link.
    ///
    /// # Errors
    ///
    /// If the document is damaged, or exceeds a limit. The core is useless then.
    pub(crate) fn resume(
        &mut self,
        document: CoreDocument,
        links: BTreeMap<u64, LinkDocument>,
        imports: &mut Imports,
        operators: Operators,
        now: Instant,
    ) -> Result<(), HandoverError> {
        let CoreDocument {
            fabric,
            sessions,
            session_descriptors,
            listeners,
            leases,
            offers,
            endpoints,
            data_path,
            connections,
            arenas,
            guest_arenas,
            vms,
            containers,
            cids,
            liveness,
            left_folders,
            text_listeners,
            counters,
            uplinks,
            waiting,
        } = document;
        let (name, kind) = self.own();
        let limits = *self.fabric.limits();
        self.fabric = Fabric::restore(fabric, limits, operators)?;
        let (found, found_kind) = self.own();
        if (&name, kind) != (&found, found_kind) {
            let what =
                format!("it is of the {found_kind} {found}, and this is to be the {kind} {name}");
            return Err(HandoverError::Damaged { what });
        }
        let fabric = &self.fabric;
        let child = |key, kind| is_child(fabric, key, kind);
        if let Some(vms) = vms {
            let vms = Vms::restore(vms, |key| child(key, PartitionKind::Vm));
            self.vms = vms.map_err(|error| of("the VMs", error))?;
        }
        if let Some(containers) = containers {
            let of_kind = |key| child(key, PartitionKind::Container);
            let restored = Containers::restore(containers, imports, of_kind);
            let (containers, processes) = restored.map_err(|error| of("the containers", error))?;
            (self.containers, self.container_processes) = (containers, processes);
        }
        let has_table = |key| self.vms.contains(key) || self.containers.contains(key);
        let own = fabric.partitions().filter(|(key, _)| {
            child(*key, PartitionKind::Vm) || child(*key, PartitionKind::Container)
        });
        if !own.map(|(key, _)| key).all(has_table) {
            let what = "a partition is neither a container nor a VM";
            return Err(HandoverError::inconsistent(what));
        }
        let is_known = |key| fabric.partition(key).is_some();
        if let Some(cids) = cids {
            let has_id = |key, id: VmId| fabric.partition(key).is_some_and(|one| one.vm_id() == id);
            let cids = Cids::restore(cids, has_id);
            self.cids = cids.map_err(|error| of("the CIDs", error))?;
        }
        if let Some(liveness) = liveness {
            let liveness = Liveness::restore(liveness, now, is_known);
            self.liveness = liveness.map_err(|error| of("the guests' agents", error))?;
        }
        if let Some(folders) = left_folders {
            let folders = LeftFolders::of_snapshot(folders);
            self.left_folders = folders.map_err(|error| of("the folders", error))?;
        }
        if let Some(counters) = counters {
            let registry = fabric.registry(fabric.root());
            let is_registered =
                |service| registry.is_some_and(|registry| registry.get(service).is_some());
            let counters = MetricsCounters::restore(counters, is_registered);
            let counters = counters.map_err(|error| of("the counters", error))?;
            self.telemetry.set_counters(counters);
        }
        let endpoints = self.endpoints.restore(endpoints, imports, is_known);
        endpoints.map_err(|error| error.of("the endpoint sockets"))?;
        let most = session_descriptors.count() as usize;
        let listeners = Listeners::restore(listeners, most, now);
        self.listeners = listeners.map_err(|error| of("the listeners", error))?;
        let leases = Leases::restore(leases, most);
        self.leases = leases.map_err(|error| of("the leases", error))?;
        let mut sockets = imports.fds(session_descriptors)?;
        let charged = |socket, partition, caller| {
            let owner = self.owner(partition, caller);
            ProcessSocket::charged(socket, self.descriptors.charge_beyond(owner, 1))
        };
        let limits = self.sessions.limits();
        let sessions = Sessions::restore(sessions, limits, &mut sockets, now, charged);
        self.sessions = sessions.map_err(|error| of("the sessions", error))?;
        if let Some(listeners) = text_listeners {
            let (budget, is_known) = (&self.descriptors, |key| {
                self.fabric.partition(key).is_some()
            });
            let restored = TextListeners::restore(listeners, imports, budget, is_known);
            let of_text = |error: HandoverError| error.of("the listeners of the text protocol");
            self.text_listeners = restored.map_err(of_text)?;
            let watched = self.watch_text_listeners();
            watched.map_err(HandoverError::io("watch a listener"))?;
        }
        let mut counters = Counters::new();
        let mut monitors = Monitors::new();
        if let Some(data_path) = data_path {
            let resumed = self.resume_connections(data_path, imports);
            let resumed = resumed.map_err(|error| error.of("the connections of processes"))?;
            counters = resumed.counters;
            monitors = resumed.arenas;
        }
        let fabric = &self.fabric;
        let is_connection = |id| fabric.connection(id).is_some();
        if let Some(arenas) = arenas {
            let budgets = [&self.descriptors, &self.arena_slots];
            let arenas = Arenas::restore(arenas, monitors, budgets, is_connection, now);
            self.arenas = arenas.map_err(|error| of("the arenas", error))?;
        }
        if let Some(arenas) = guest_arenas {
            let (budget, is_vm) = (&self.descriptors, |key| self.vms.contains(key));
            let arenas = GuestArenas::restore(arenas, imports, budget, is_connection, is_vm);
            self.guest_arenas = arenas.map_err(|error| error.of("the arenas of guests"))?;
        }
        if let Some(connections) = connections {
            let (budget, is_vm) = (&self.descriptors, |key| self.vms.contains(key));
            let restored = Connections::restore(connections, &mut counters, budget, is_vm, now);
            self.connections = restored.map_err(|error| of("the connections", error))?;
        }
        if let Some(waiting) = waiting {
            let resumed = self.resume_waiting(waiting, imports);
            resumed.map_err(|error| error.of("the requests that wait"))?;
        }
        self.resume_links(links, imports, &counters)?;
        self.check_guest_arenas(imports)?;
        if let Some(uplinks) = uplinks {
            let uplinks = self.resume_uplinks(uplinks, imports, now);
            uplinks.map_err(|error| of("the uplinks of guests", error))?;
        }
        self.check_connections()?;
        self.charge_containers();
        self.join_sessions()?;
        if let Some(offers) = offers {
            let (listeners, fabric) = (&self.listeners, &self.fabric);
            let is_listener = |id| listeners.get(id).is_some();
            let is_connection = |id| fabric.connection(id).is_some();
            let offers = Offers::restore(offers, imports, is_listener, is_connection);
            self.offers = offers.map_err(|error| error.of("the offers"))?;
        }
        Ok(())
    }

    /// Makes the links of the VMs again, frozen.
    fn resume_links(
        &mut self,
        mut links: BTreeMap<u64, LinkDocument>,
        imports: &mut Imports,
        counters: &Counters,
    ) -> Result<(), HandoverError> {
        let mut vms: Vec<PartitionKey> = self.vms.keys().collect();
        vms.sort();
        for vm in vms {
            let label = self.vm_label(vm);
            let missing = || HandoverError::inconsistent("a VM has no link").of(&label);
            let document = links.remove(&vm.as_u64()).ok_or_else(missing)?;
            let partition = self.fabric.partition(vm).map(Partition::name);
            let record = self.vms.get(vm);
            let (name, record) = partition.zip(record).ok_or_else(missing)?;
            let entry = record.settings();
            let socket = self.dirs.vm_socket(name.as_str());
            let factory = links::built_in(entry, socket, &self.kernel_hosts);
            let settings = self.link_settings(entry);
            let events = self.reports.of_link(vm, name.as_str());
            let resuming = Resuming::new(settings, events, counters);
            let link = factory.resume(document, imports, resuming);
            self.vms
                .set_link(vm, link.map_err(|error| error.of(&label))?);
            // What it has for services is charged when they are judged.
            self.charge_vm(vm, 0);
        }
        if !links.is_empty() {
            return Err(HandoverError::inconsistent("a link is of no VM"));
        }
        Ok(())
    }

    /// Checks that every connection of the fabric is one of one table: nobody else would end it.
    fn check_connections(&self) -> Result<(), HandoverError> {
        let mut all = self.fabric.connections().map(|(id, _)| id);
        let is_arena = |id| self.arenas.get(id).is_some() || self.guest_arenas.contains(id);
        match all.all(|id| is_arena(id) != self.connections.get(id).is_some()) {
            true => Ok(()),
            false => Err(HandoverError::inconsistent(
                "a connection has no record or two",
            )),
        }
    }

    /// Charges the containers for what they have.
    fn charge_containers(&mut self) {
        let all = self.fabric.partitions().map(|(key, _)| key);
        let containers: Vec<_> = all.filter(|key| self.containers.contains(*key)).collect();
        for key in containers {
            let descriptors = match self.container_processes.contains_key(&key) {
                true => BOUND,
                false => CONTAINER,
            };
            self.charge_partition(key, descriptors);
        }
    }

    /// The broker's own partition.
    fn own(&self) -> (String, PartitionKind) {
        let own = self.fabric.partition(self.fabric.root());
        let none = || (String::new(), PartitionKind::Host);
        own.map_or_else(none, |own| (own.name().to_string(), own.kind()))
    }

    /// Tells listeners and leases which sessions they are of, and watches these.
    fn join_sessions(&mut self) -> Result<(), HandoverError> {
        for (index, session) in self.sessions.iter() {
            match session.role() {
                Role::Idle => {}
                Role::Listener(id) => self.listeners.set_session(id, index),
                Role::Lease(service) if self.leases.is_held_by(service, session.serial()) => {
                    self.leases.set_session(service, index);
                }
                Role::Lease(_) => {
                    let what = "a session has a lease that is another one's";
                    return Err(HandoverError::inconsistent(what));
                }
            }
            let watched = self.session_io.watch(&session.socket, index);
            watched.map_err(HandoverError::io("watch a session"))?;
        }
        Ok(())
    }

    /// Lets a core that was taken over begin: it judges by this release's rules what it has, and its links go on.
    pub(super) fn begin(&mut self) {
        let now = Instant::now();
        self.begin_connections(now);
        self.apply_effects();
        for vm in self.vms.keys().collect::<Vec<_>>() {
            if let Some(link) = self.vms.link(vm) {
                link.thaw();
            }
        }
        self.begin_arenas(now);
        self.offer_services_again();
        self.begin_uplinks();
        self.begin_text_listeners();
        self.pass_held();
        self.replay();
    }
}

/// Whether a partition is a child of this kind, and not one in a VM.
fn is_child(fabric: &Fabric, key: PartitionKey, kind: PartitionKind) -> bool {
    let partition = fabric.partition(key);
    partition.is_some_and(|one| one.kind() == kind && one.parent() == Some(fabric.root()))
}
