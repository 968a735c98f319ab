//! Connections between the host and the containers in VMs.
//!
//! Each is a vsock stream of its own, of which both sides agree on the port by the uplink. *Up*: the broker in the
//! guest asks, the host judges and expects a stream of this VM at a random port of the host, once and for a short
//! time. *Down*: the host judges and asks, and the broker in the guest answers with the port of the guest at
//! which it expects the stream. From there on it is a connection with a guest as any other.

use std::time::{Duration, Instant};

use hvsock_address::{SockAddrHv, VmId};
use hvsock_endpoint::Refused;
use hvsock_endpoint::uplink::{
    ConnectUp, FIRST_TOKEN_PORT, HostFrame, Incoming, PRIVILEGED_PORTS, Request, TOKEN_MS,
};
use hvsock_fabric::{ConnectRequest, ConnectionId, Destination, PartitionKey, Refusal};
use rustix::rand::{GetRandomFlags, getrandom};

use super::guest_connects::LINK_GRACE;
use super::guests::principal_of;
use super::labels::partition_label;
use super::pending::Stage;
use super::session_io::is_gone;
use super::state::Core;
use super::uplinks::{ExpectedConnect, NotAdded};
use crate::audit::{MAX_TEXT, visible};
use crate::budget::Owner;
use crate::callers::Caller;
use crate::guest_link::{self, GuestConnect, GuestRequest, RequestId, Service, SocketKind, Source};
use crate::model::EventKind;
use crate::reply::refused;
use crate::uplink::SessionEnd;

/// How long a stream is expected at its port, at most.
const EXPECTED_FOR: Duration = Duration::from_millis(TOKEN_MS as u64);
/// Attempts to find a port that is free.
const ATTEMPTS: usize = 16;
/// How often the core looks whether processes still wait for the brokers in guests.
const LOOK: Duration = Duration::from_millis(250);

impl Core {
    /// Judges a connect of a guest or of a container in it.
    pub(super) fn uplink_connects(
        &mut self,
        vm: PartitionKey,
        connect: &ConnectUp,
    ) -> Result<(), SessionEnd> {
        let ConnectUp {
            request,
            child,
            timeout_ms,
            address,
        } = *connect;
        let Some(from) = self.uplinks.partition(vm, child) else {
            // The guest may not know yet that the container was refused.
            self.refuse_connect_up(vm, request, &Refusal::NotReachable);
            return Ok(());
        };
        let target = self.target_of_guest(vm, from, address.vm);
        let address = SockAddrHv::new(target, address.service);
        let expected = match self.uplinks.check_request(vm, request) {
            Ok(()) => self.expect_connect(vm, request, from, address, timeout_ms),
            Err(NotAdded::InUse) => {
                let what = format!("CONNECT {} twice", request.0);
                return Err(SessionEnd::violation(what));
            }
            Err(NotAdded::Full) => Err(Refusal::LimitReached {
                which: "connects that wait for their stream".into(),
            }),
            Err(NotAdded::NoUplink) => return Ok(()),
        };
        match expected {
            Ok(port) => self.send_up(vm, HostFrame::ConnectPort { request, port }),
            Err(refusal) => {
                self.note_refused_up(from, address, &refusal);
                self.refuse_connect_up(vm, request, &refusal);
            }
        }
        Ok(())
    }

    /// The partition that an address of a guest means. The machine itself may name its host by the host's id.
    pub(super) fn target_of_guest(
        &self,
        vm: PartitionKey,
        from: PartitionKey,
        target: VmId,
    ) -> VmId {
        let host = self.fabric.partition(self.fabric.root());
        match host.is_some_and(|host| host.vm_id() == target) {
            true if from == vm => VmId::PARENT,
            _ => target,
        }
    }

    /// Whether an address of a guest means the host. An uplink leads nowhere else: not to another guest, and not
    /// into this one.
    fn is_host_to_guest(&self, vm: PartitionKey, from: PartitionKey, target: VmId) -> bool {
        let host = self.fabric.partition(self.fabric.root());
        match from == vm {
            true => [VmId::PARENT, VmId::WILDCARD].contains(&target),
            false => host.is_some_and(|host| host.vm_id() == target),
        }
    }

    fn expect_connect(
        &mut self,
        vm: PartitionKey,
        request: Request,
        from: PartitionKey,
        address: SockAddrHv,
        timeout_ms: u32,
    ) -> Result<u32, Refusal> {
        if !self.is_host_to_guest(vm, from, address.vm) {
            return Err(Refusal::NotReachable);
        }
        let connect = ConnectRequest {
            from,
            principal: &principal_of(Caller::UNKNOWN),
            vm: address.vm,
            service: address.service,
        };
        match self.fabric.judge(&connect)? {
            Destination::Listener(_) => {}
            Destination::Guest => return Err(Refusal::NotReachable),
        }
        let timeout = match timeout_ms {
            0 => EXPECTED_FOR,
            ms => Duration::from_millis(ms.into()).min(EXPECTED_FOR),
        };
        // Where the link hands out sockets, it has one for the port.
        let charge = match self.capabilities(vm).byte_counts {
            true => None,
            false => {
                let charge = self.descriptors.charge(Owner::Partition(vm), 1);
                Some(charge.map_err(|shortage| self.descriptor_share(shortage))?)
            }
        };
        let expected = ExpectedConnect {
            request,
            from,
            address,
            deadline: Instant::now() + timeout,
            _charge: charge,
        };
        let port = self.free_port(vm)?;
        let added = self.uplinks.expect(vm, port, expected);
        added.map_err(|_| Refusal::AddressInUse)?;
        Ok(port)
    }

    /// A random port of the host that no service has, and at which the link of the VM accepts now.
    fn free_port(&self, vm: PartitionKey) -> Result<u32, Refusal> {
        let link = self.link_of(vm).ok_or(Refusal::PartitionOff)?;
        let mut last = Refusal::AddressInUse;
        for _ in 0..ATTEMPTS {
            let port = random_port()?;
            let is_service = self
                .registry()
                .is_some_and(|registry| registry.by_port(port).is_some());
            if is_service || self.uplinks.expects(vm, port) {
                continue;
            }
            match link.expect_port(port) {
                Ok(()) => return Ok(port),
                Err(refusal) => last = refusal,
            }
        }
        Err(last)
    }

    fn refuse_connect_up(&mut self, vm: PartitionKey, request: Request, refusal: &Refusal) {
        let reason = refused(refusal);
        self.send_up(vm, HostFrame::ConnectRefused { request, reason });
    }

    /// Counts, logs and publishes why a guest, or a container in it, was refused.
    fn note_refused_up(&mut self, from: PartitionKey, address: SockAddrHv, refusal: &Refusal) {
        self.telemetry.count_refused(refusal);
        self.audit_refused("connect", (from, Caller::UNKNOWN), address, None, refusal);
        let from = partition_label(&self.fabric, from);
        tracing::info!(%from, %address, reason = refusal.label(),
            "refused a guest's connect: {refusal}");
        self.telemetry.publish(|| EventKind::Refused {
            from,
            address: address.to_string(),
            reason: refusal.label().into(),
            message: refusal.to_string(),
        });
    }

    /// The connect whose stream a guest's request is, which is then used up.
    pub(super) fn take_expected(
        &mut self,
        vm: PartitionKey,
        request: &GuestRequest,
    ) -> Option<(u32, ExpectedConnect)> {
        let Service::Port(port) = request.service else {
            return None;
        };
        let is_stream = request.kind == SocketKind::Stream
            && request.destination == guest_link::Destination::Host;
        let expected = is_stream.then(|| self.uplinks.take_expected(vm, port))?;
        expected.map(|expected| (port, expected))
    }

    /// Connects the stream of a connect that was allowed. It is judged again: meanwhile the rules may have changed.
    pub(super) fn expected_arrived(
        &mut self,
        vm: PartitionKey,
        id: RequestId,
        mut request: GuestRequest,
        (port, expected): (u32, ExpectedConnect),
    ) {
        let ExpectedConnect { from, address, .. } = expected;
        let joined = self.join_guest((vm, from), &mut request, address);
        if let Some(link) = self.link_of(vm) {
            match &joined {
                Ok(_) => {}
                Err(_) => link.refuse(id, None),
            }
            link.release_port(port);
        }
        match joined {
            Ok(joined) => self.answer_joined(vm, id, joined),
            Err(refusal) => {
                self.note_refused_up(from, address, &refusal);
                self.refuse_connect_up(vm, expected.request, &refusal);
            }
        }
    }

    /// A guest gives up a connect. One whose stream has arrived is not concerned.
    pub(super) fn uplink_cancels(&mut self, vm: PartitionKey, request: Request) {
        if let Some(port) = self.uplinks.port_of(vm, request) {
            self.forget_expected(vm, port);
        }
    }

    /// Expects no stream at a port any more.
    pub(super) fn forget_expected(&mut self, vm: PartitionKey, port: u32) {
        if self.uplinks.take_expected(vm, port).is_some()
            && let Some(link) = self.link_of(vm)
        {
            link.release_port(port);
        }
    }

    /// Asks the broker in a VM at which port of the guest a container expects a stream.
    pub(super) fn ask_for_port(
        &mut self,
        container: PartitionKey,
        connection: ConnectionId,
        address: SockAddrHv,
        timeout: Duration,
    ) -> Result<Request, Refusal> {
        let vm = self.carrier(container);
        let child = self.uplinks.number(container);
        let child = child.ok_or(Refusal::PartitionOff)?;
        let request = self.uplinks.begin_incoming(vm, connection);
        let request = request.map_err(|why| self.not_asked(vm, why))?;
        self.send_up(
            vm,
            HostFrame::Incoming(Incoming {
                request,
                child,
                timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
                service: address.service,
            }),
        );
        // The uplink may have ended by that.
        match self.uplinks.number(container) {
            Some(_) => Ok(request),
            None => Err(Refusal::PartitionOff),
        }
    }

    /// The refusal for a request that the broker in a VM cannot be asked.
    pub(super) fn not_asked(&self, vm: PartitionKey, why: NotAdded) -> Refusal {
        match why {
            NotAdded::NoUplink => Refusal::PartitionOff,
            NotAdded::InUse | NotAdded::Full => Refusal::LimitReached {
                which: format!(
                    "requests that the broker in {} has not answered",
                    partition_label(&self.fabric, vm)
                ),
            },
        }
    }

    /// The broker in a VM expects a stream at this port of the guest: has the link connect.
    pub(super) fn incoming_port(
        &mut self,
        vm: PartitionKey,
        request: Request,
        port: u32,
    ) -> Result<(), SessionEnd> {
        self.check_asked(vm, request)?;
        if port < PRIVILEGED_PORTS || port == u32::MAX {
            let what = format!("the port {port}, which is not from {PRIVILEGED_PORTS} on");
            return Err(SessionEnd::violation(what));
        }
        let Some(id) = self.uplinks.take_incoming(vm, request) else {
            return Ok(());
        };
        let now = Instant::now();
        let Some((pending, deadline)) = self.connections.pending_mut(id) else {
            return Ok(());
        };
        let timeout = deadline.saturating_duration_since(now);
        let Stage::Asked { end, .. } = std::mem::replace(&mut pending.stage, Stage::Connecting)
        else {
            return Ok(());
        };
        self.connections
            .set_deadline(id, now + timeout + LINK_GRACE);
        let connect = GuestConnect {
            connection: id,
            source: Source::Host,
            container: None,
            service: Service::Port(port),
            kind: SocketKind::Stream,
            timeout,
            end,
        };
        let asked = match self.link_of(vm) {
            Some(link) => link.connect(connect),
            None => Err(Refusal::PartitionOff),
        };
        if let Err(refusal) = asked {
            self.abort_pending(id, &refusal);
        }
        Ok(())
    }

    /// The broker in a VM refuses a connection to a container.
    pub(super) fn incoming_refused(
        &mut self,
        vm: PartitionKey,
        request: Request,
        reason: &Refused,
    ) -> Result<(), SessionEnd> {
        self.check_asked(vm, request)?;
        if let Some(id) = self.uplinks.take_incoming(vm, request) {
            // It is the guest's text, and ends on a terminal of the host.
            let detail = visible(&reason.detail, MAX_TEXT);
            self.abort_pending(id, &Refusal::from_wire(reason.code, &detail));
        }
        Ok(())
    }

    /// The broker in a VM need not answer a connect any more.
    pub(super) fn cancel_incoming(&mut self, vm: PartitionKey, request: Request) {
        if self.uplinks.take_incoming(vm, request).is_some() {
            self.send_up(vm, HostFrame::Cancel { request });
        }
    }

    /// Forgets the connects of guests whose stream has not arrived, and those to guests whose process is gone.
    pub(super) fn expire_uplink_connects(&mut self, now: Instant) {
        while let Some((vm, port)) = self.uplinks.expired(now) {
            self.forget_expected(vm, port);
        }
        if self.next_look_at_waiting.is_some_and(|at| now < at) {
            return;
        }
        self.next_look_at_waiting = self.uplinks.has_waiting().then_some(now + LOOK);
        if self.next_look_at_waiting.is_none() {
            return;
        }
        self.expire_explanations(now);
        for id in self.uplinks.all_incoming() {
            let pending = self.connections.pending(id);
            if pending.is_some_and(|pending| is_gone(&pending.session)) {
                let cause = "the connecting process has ended".into();
                self.abort_pending(id, &Refusal::Reset { cause });
            }
        }
    }

    /// When [`expire_uplink_connects`](Self::expire_uplink_connects) has something to do.
    pub(super) fn next_uplink_deadline(&self) -> Option<Instant> {
        let look = match self.uplinks.has_waiting() {
            true => self
                .next_look_at_waiting
                .or_else(|| Some(Instant::now() + LOOK)),
            false => None,
        };
        self.uplinks.next_deadline().into_iter().chain(look).min()
    }
}

/// A random port that no service has by chance.
fn random_port() -> Result<u32, Refusal> {
    let mut bytes = [0; 4];
    let got = rustix::io::retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty()));
    match got {
        Ok(4) => Ok(port_of(u32::from_ne_bytes(bytes))),
        Ok(_) | Err(_) => Err(Refusal::LimitReached {
            which: "random numbers of the system".into(),
        }),
    }
}

/// A port from [`FIRST_TOKEN_PORT`] on, and not the last one, which is no port.
fn port_of(number: u32) -> u32 {
    FIRST_TOKEN_PORT + number % (u32::MAX - FIRST_TOKEN_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_makes_a_port_above_those_of_services() {
        for number in [0, 1, FIRST_TOKEN_PORT, u32::MAX - 1, u32::MAX] {
            let port = port_of(number);
            assert!((FIRST_TOKEN_PORT..u32::MAX).contains(&port), "{number}");
        }
        let ports: std::collections::BTreeSet<_> =
            (0..20).map(|_| random_port().unwrap()).collect();
        assert!(ports.len() > 15);
    }
}
