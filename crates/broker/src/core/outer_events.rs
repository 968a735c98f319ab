//! Opens the link to the host, and follows what it tells.

use std::collections::HashMap;
use std::time::Instant;

use hvsock_address::{PartitionName, SockAddrHv, VmId};
use hvsock_endpoint::uplink::{Service, Welcome};
use hvsock_fabric::{
    AddPartitionError, Audience, ConnectRequest, Destination, OuterSpec, PartitionKey, Refusal,
};
use hvsock_registry::Registry;

use super::guests::principal_of;
use super::labels::partition_label;
use super::outer::{Outer, OwnPorts, UNNAMED};
use super::outer_waits::Waits;
use super::state::Core;
use crate::callers::Caller;
use crate::config::HostLink;
use crate::guest_link::{self, GuestRequest, SocketKind};
use crate::model::{EventKind, ProblemKind};
use crate::reply::{explained, refused};
use crate::uplink_client::{self, Incoming, UplinkClient, UplinkEvent, UplinkState, WhyDown};
use crate::{StartError, budget::Owner};

/// The descriptors of the link: the uplink, and what its thread waits with.
const DESCRIPTORS: u64 = 4;

/// The object of the problem that there is no uplink.
const UPLINK: &str = "uplink";

impl Core {
    /// Adds the host that this machine is a guest of, and starts the link to it.
    pub(super) fn open_outer(&mut self, host: HostLink) -> Result<(), StartError> {
        let unnamed = PartitionName::new(UNNAMED).map_err(|error| {
            let error = std::io::Error::other(error);
            StartError::io("name the host")(error)
        })?;
        let vm_id = self.placeholder_id();
        let outer = OuterSpec {
            name: unnamed,
            vm_id,
        };
        let key = self.fabric.set_outer(outer).map_err(|error| {
            StartError::io("add the host of this virtual machine")(std::io::Error::other(error))
        })?;
        let (link, events) = (self.reports.of_link(key, UPLINK), self.reports.of_uplink());
        let client = UplinkClient::start(host.transport, link, events);
        let client = client.map_err(StartError::io("start the uplink to the host"))?;
        let charge = self
            .descriptors
            .charge_beyond(Owner::Partition(key), DESCRIPTORS);
        self.partition_charges.insert(key, charge);
        self.outer = Some(Outer {
            key,
            client,
            is_required: host.is_required,
            state: UplinkState::Connecting,
            was_open: false,
            since: Instant::now(),
            announced: HashMap::new(),
            ports: OwnPorts::default(),
            looked_up: None,
            waits: Waits::default(),
        });
        self.assign_own_cids();
        Ok(())
    }

    /// An id for a host that has told none, or one that a partition here has.
    fn placeholder_id(&self) -> VmId {
        let own = partition_label(&self.fabric, self.fabric.root());
        VmId::of_container(&format!("the host of {own}"))
    }

    /// The outer partition, if a connection or request is its.
    pub(super) fn is_outer(&self, key: PartitionKey) -> bool {
        self.fabric.outer() == Some(key)
    }

    /// Handles an event of the uplink.
    pub(super) fn handle_uplink_event(&mut self, event: UplinkEvent) {
        let Some(outer) = &mut self.outer else {
            return;
        };
        match event {
            UplinkEvent::State(state) => self.outer_state(state),
            UplinkEvent::Services(services) => self.set_outer_services(&services),
            UplinkEvent::Service(service) => self.set_outer_service(&service),
            UplinkEvent::ServiceGone(service) => {
                let key = outer.key;
                self.fabric.unregister(key, service);
            }
            UplinkEvent::Synced(number) => self.retry_synced(number),
            UplinkEvent::Announced(id, answer) => {
                if let Err(why) = &answer {
                    let name = self.fabric.by_vm_id(id);
                    let name = name.map(|key| partition_label(&self.fabric, key));
                    tracing::warn!(container = name, "the host has refused a container: {why}");
                }
                outer.announced.insert(id, answer);
            }
            UplinkEvent::LookedUp(number, found) => self.retry_looked_up(number, found),
            UplinkEvent::StreamRefused(id, refusal) => {
                let key = outer.key;
                let found = self.connections.get(id);
                if found.is_some_and(|record| record.to.partition == key) {
                    self.reset_connection(id, refusal);
                }
            }
            UplinkEvent::Incoming(incoming) => self.judge_outer(&incoming),
            UplinkEvent::Explain(incoming) => self.explain_to_outer(&incoming),
            UplinkEvent::Explained(number, answer) => self.host_explained(number, &answer),
        }
        self.apply_effects();
    }

    fn outer_state(&mut self, state: UplinkState) {
        match &state {
            UplinkState::Connecting => {}
            UplinkState::Open(welcome) => self.outer_open(welcome),
            UplinkState::Down(why) => self.outer_down(why),
        }
        if let Some(outer) = &mut self.outer {
            outer.was_open |= matches!(state, UplinkState::Open(_));
            (outer.state, outer.since) = (state, Instant::now());
        }
    }

    fn outer_open(&mut self, welcome: &Welcome) {
        let Ok(name) =
            PartitionName::new(welcome.host_name.clone()).or_else(|_| PartitionName::new(UNNAMED))
        else {
            return;
        };
        let spec = |vm_id| OuterSpec {
            name: name.clone(),
            vm_id,
        };
        let set = self.fabric.set_outer(spec(welcome.host)).or_else(|error| {
            match &error {
                AddPartitionError::IdTaken { name, id } => tracing::warn!(
                    "the host's id {id} is that of {name} here: containers reach the host by its name only"
                ),
                error => tracing::warn!("the host cannot have its id here: {error}"),
            }
            let placeholder = self.placeholder_id();
            self.fabric.set_outer(spec(placeholder))
        });
        if let Err(error) = set {
            tracing::warn!("the host cannot be named here: {error}");
        }
        self.clear(ProblemKind::Uplink, UPLINK);
        let (host, machine) = (&welcome.host_name, &welcome.machine_name);
        tracing::info!(%host, vm = %machine, "the uplink to the host is open");
        let (host, machine) = (host.clone(), machine.clone());
        self.telemetry.publish(|| EventKind::UplinkOpened {
            host,
            partition: machine,
        });
    }

    fn outer_down(&mut self, why: &WhyDown) {
        let Some(outer) = &mut self.outer else {
            return;
        };
        let was_open = matches!(outer.state, UplinkState::Open(_));
        outer.announced.clear();
        let may_learn = outer.client.may_learn();
        // A host without a broker is nothing that has to be seen to, unless one is expected.
        let is_expected = outer.is_required || outer.was_open || *why != WhyDown::NoBroker;
        self.fabric.set_outer_mirrored(false);
        let text = format!("there is no uplink to the host: {why}");
        match is_expected {
            true => self.raise(ProblemKind::Uplink, UPLINK, text, None),
            false => tracing::info!("{text}; the host is reached by vsock port"),
        }
        if was_open {
            let reason = why.to_string();
            self.telemetry.publish(|| EventKind::UplinkLost { reason });
        }
        self.end_explains();
        if !may_learn {
            self.retry_synced(u64::MAX);
        }
    }

    /// Replaces what is known of the host's services.
    fn set_outer_services(&mut self, services: &[Service]) {
        let Some(outer) = self.outer.as_ref().map(|outer| outer.key) else {
            return;
        };
        let mut registry = Registry::new();
        for service in services {
            let registration = uplink_client::registration(service);
            let inserted = registration.map(|registration| registry.insert(registration));
            report_unusable(service, &inserted);
        }
        if let Err(error) = self.fabric.set_registry(outer, registry) {
            tracing::warn!("cannot keep the services of the host: {error}");
        }
        self.fabric.set_outer_mirrored(true);
        // Those that began to wait before there was an uplink, and those whose question was lost with it.
        if let Some(outer) = &mut self.outer
            && let Some(number) = outer.waits.unanswered()
        {
            outer.client.sync(number);
        }
    }

    fn set_outer_service(&mut self, service: &Service) {
        let Some(outer) = self.outer.as_ref().map(|outer| outer.key) else {
            return;
        };
        let registration = uplink_client::registration(service);
        let updated = registration.map(|registration| self.fabric.update(outer, registration));
        report_unusable(service, &updated);
    }

    /// Judges a connection that the host requests, by the registry here.
    fn judge_outer(&mut self, incoming: &Incoming) {
        let (Some(target), Some(from)) = (self.outer_target(incoming), self.fabric.outer()) else {
            return self.refuse_outer(incoming, &Refusal::NotReachable);
        };
        let request = ConnectRequest {
            from,
            principal: &principal_of(Caller::UNKNOWN),
            vm: target,
            service: incoming.service,
        };
        // With its checks of the capacity, but nothing is kept until the stream is there.
        let verdict = self.route(&request).and_then(|route| {
            self.fabric.close_connection(route.connection);
            match route.destination {
                Destination::Listener(_) => Ok(()),
                Destination::Guest => Err(Refusal::NotSupported),
            }
        });
        match verdict {
            Ok(()) => {
                if let Some(outer) = &self.outer {
                    outer.client.expect(incoming.request);
                }
            }
            Err(refusal) => {
                let address = SockAddrHv::new(target, incoming.service);
                self.refuse_outer(incoming, &refusal);
                self.refuse_guest(from, &request_of(incoming), Some(address), &refusal);
            }
        }
    }

    fn refuse_outer(&self, incoming: &Incoming, refusal: &Refusal) {
        if let Some(outer) = &self.outer {
            outer.client.refuse_incoming(incoming.request, refusal);
        }
    }

    /// Tells the host what would become of a connection of it.
    fn explain_to_outer(&mut self, incoming: &Incoming) {
        let target = self.outer_target(incoming);
        let Some(outer) = &self.outer else {
            return;
        };
        let answer = match target {
            None => refused(&Refusal::NotReachable),
            Some(vm) => {
                let request = ConnectRequest {
                    from: outer.key,
                    principal: &principal_of(Caller::UNKNOWN),
                    vm,
                    service: incoming.service,
                };
                // The host may know what is inside its guest.
                explained(&self.fabric.explain_connect(&request, Audience::Operator))
            }
        };
        outer.client.explained(incoming.request, answer);
    }

    /// The id of the partition that the host requests a connection to.
    fn outer_target(&self, incoming: &Incoming) -> Option<VmId> {
        match incoming.child {
            Some(child) => Some(child),
            None => Some(self.fabric.partition(self.fabric.root())?.vm_id()),
        }
    }
}

/// The request as one of a link, for the record of its refusal.
fn request_of(incoming: &Incoming) -> GuestRequest {
    let destination = match incoming.child {
        Some(child) => guest_link::Destination::Partition(child),
        None => guest_link::Destination::Host,
    };
    GuestRequest {
        destination,
        service: guest_link::Service::Id(incoming.service),
        kind: SocketKind::Stream,
        source_port: None,
        identity: None,
        socket: None,
    }
}

/// Logs that a service of the host cannot be used by its name here.
fn report_unusable<T, E: std::fmt::Display>(service: &Service, result: &Option<Result<T, E>>) {
    let (id, name) = (service.service, &service.name);
    match result {
        Some(Ok(_)) => {}
        Some(Err(error)) => tracing::warn!("cannot keep the host's service {id}: {error}"),
        None => tracing::warn!(%name, "the host's service {id} has no valid name"),
    }
}
