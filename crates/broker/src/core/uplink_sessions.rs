//! Opens and ends the uplinks of brokers in guests, reads their frames, and sends them frames.
//!
//! A guest's broker is believed about its own containers only. A frame that breaks a rule of the protocol ends its
//! uplink, and with that its containers here, and nothing else.

use std::time::{Duration, Instant};

use hvsock_control::{AuditCategory, AuditOutcome, AuditRecord};
use hvsock_endpoint::uplink::{ExplainUp, GuestFrame, Hello, HostFrame, Request, Welcome, What};
use hvsock_fabric::{PartitionKey, PartitionState, Refusal};

use super::guests::principal_of;
use super::labels::partition_label;
use super::sessions::Request as ProcessRequest;
use super::state::Core;
use super::uplinks::Uplink;
use crate::audit::{MAX_TEXT, visible};
use crate::callers::Caller;
use crate::model::EventKind;
use crate::reply::{explained, refused};
use crate::uplink::{Role, SessionEnd, Silence, UplinkSession};

impl Core {
    /// A guest's broker opens an uplink: the root of `vm` has connected and sent HELLO. The connection is
    /// `client` of [`uplink_clients`](Self::uplink_clients). An uplink of the same VM ends.
    pub(super) fn open_uplink(&mut self, client: usize, vm: PartitionKey, hello: &Hello) {
        if let Some(before) = self.uplinks.get(vm).map(|uplink| uplink.client) {
            let cause = "another broker of this virtual machine has opened an uplink".into();
            self.refuse_uplink_client(before, &Refusal::Reset { cause });
        }
        let root = self.fabric.root();
        let (Some(host), Some(machine)) = (self.fabric.partition(root), self.fabric.partition(vm))
        else {
            return self.refuse_uplink_client(client, &Refusal::PartitionOff);
        };
        let welcome = Welcome {
            features: 0,
            host: host.vm_id(),
            machine: machine.vm_id(),
            host_name: host.name().to_string(),
            machine_name: machine.name().to_string(),
        };
        let now = Instant::now();
        let Some(found) = self.uplink_clients.get_mut(client) else {
            return;
        };
        found.role = Role::Uplink;
        let session = UplinkSession::new(now);
        self.uplinks.open(vm, client, session, now);
        self.send_up(vm, HostFrame::Welcome(welcome));
        self.mirror_all(vm);
        self.send_up(vm, HostFrame::ServicesEnd);
        self.uplink_state(vm, self.fabric.state(vm));
        let name = partition_label(&self.fabric, vm);
        let run = hvsock_address::VmId::from_guid_bytes(hello.instance);
        tracing::info!(vm = %name, %run, "the broker in the guest has connected");
        self.audit_uplink(vm, "uplink", None);
        self.telemetry
            .publish(|| EventKind::GuestBrokerConnected { partition: name });
    }

    /// A frame of an uplink has arrived.
    pub(super) fn uplink_frame(&mut self, client: usize, frame: GuestFrame) {
        let now = Instant::now();
        let Some(vm) = self.uplinks.vm_of(client) else {
            return self.fail_uplink_client(client, "a frame without an uplink");
        };
        let Some(uplink) = self.uplinks.get_mut(vm) else {
            return;
        };
        let handled = match uplink.session.receive(frame, now) {
            Ok(Some(frame)) => self.handle_uplink_frame(vm, frame),
            Ok(None) => Ok(()),
            Err(end) => Err(end),
        };
        if let Err(end) = handled {
            return self.fail_uplink(vm, &end);
        }
        self.pump_uplink(vm);
    }

    fn handle_uplink_frame(
        &mut self,
        vm: PartitionKey,
        frame: GuestFrame,
    ) -> Result<(), SessionEnd> {
        match frame {
            GuestFrame::Announce(announce) => self.child_announced(vm, &announce)?,
            GuestFrame::ChildState { child, state } => self.child_state(vm, child, state),
            GuestFrame::Withdraw { child } => self.child_withdrawn(vm, child),
            GuestFrame::Connect(connect) => self.uplink_connects(vm, &connect)?,
            GuestFrame::IncomingPort { request, port } => self.incoming_port(vm, request, port)?,
            GuestFrame::IncomingRefused { request, reason } => {
                self.incoming_refused(vm, request, &reason)?;
            }
            GuestFrame::Cancel { request } => self.uplink_cancels(vm, request),
            GuestFrame::Sync { number } => {
                // What has changed is in the mirror before the answer.
                self.judge_arenas();
                self.send_up(vm, HostFrame::Synced { number });
            }
            GuestFrame::Explain(explain) => {
                let answer = self.explain_up(vm, &explain);
                self.send_up(vm, answer);
            }
            GuestFrame::Explained {
                request,
                explanation,
            } => {
                self.check_asked(vm, request)?;
                if let Some(asker) = self.uplinks.take_explanation(vm, request) {
                    self.answer_asker(vm, asker, Ok(explanation));
                }
            }
            // The session has handled them.
            GuestFrame::Lookup { .. }
            | GuestFrame::Hello(_)
            | GuestFrame::Ping
            | GuestFrame::Pong => {}
        }
        Ok(())
    }

    /// Checks that a guest answers a request that it can have received. The request may have ended since.
    pub(super) fn check_asked(&self, vm: PartitionKey, request: Request) -> Result<(), SessionEnd> {
        let uplink = self.uplinks.get(vm);
        match uplink.is_none_or(|uplink| uplink.has_asked(request)) {
            true => Ok(()),
            false => {
                let what = format!("an answer to request {}, which was not made", request.0);
                Err(SessionEnd::violation(what))
            }
        }
    }

    /// Explains a request of a guest, as to a process of a container.
    fn explain_up(&mut self, vm: PartitionKey, explain: &ExplainUp) -> HostFrame {
        let ExplainUp {
            request,
            child,
            what,
            mut address,
        } = *explain;
        let explanation = match self.uplinks.partition(vm, child) {
            Some(from) => {
                address.vm = self.target_of_guest(vm, from, address.vm);
                let kind = match what {
                    What::Connect => ProcessRequest::Connect,
                    What::Listen => ProcessRequest::Listen { backlog: 1 },
                };
                let principal = principal_of(Caller::UNKNOWN);
                explained(&self.explain_request(from, &principal, address, kind))
            }
            None => refused(&Refusal::NotReachable),
        };
        HostFrame::Explained {
            request,
            explanation,
        }
    }

    /// Sends a frame to the broker in a VM, if there is one.
    pub(super) fn send_up(&mut self, vm: PartitionKey, frame: HostFrame) {
        let Some(uplink) = self.uplinks.get_mut(vm) else {
            return;
        };
        match uplink.session.send(frame) {
            Ok(()) => self.pump_uplink(vm),
            Err(end) => self.fail_uplink(vm, &end),
        }
    }

    /// Passes an uplink's frames to its stream, as far as the guest reads.
    pub(super) fn pump_uplink(&mut self, vm: PartitionKey) {
        let now = Instant::now();
        let Some(Uplink {
            client, session, ..
        }) = self.uplinks.get_mut(vm)
        else {
            return;
        };
        let Some(found) = self.uplink_clients.get_mut(*client) else {
            return;
        };
        let guest = &mut found.stream;
        while !guest.is_congested() {
            let Some(frame) = session.next_frame() else {
                break;
            };
            guest.queue(&frame);
            if guest.is_congested() {
                guest.flush();
            }
        }
        guest.flush();
        session.wrote(guest.accepted(), guest.unsent(), now);
        let deadline = session.next_deadline(now);
        let client = *client;
        self.uplink_clients
            .set_deadline(client, deadline.unwrap_or(now + IDLE));
    }

    /// Whether a guest's connection may be read now: one that is an uplink may flood.
    pub(super) fn may_read_uplink(&mut self, client: usize, now: Instant) -> bool {
        let Some(vm) = self.uplinks.vm_of(client) else {
            return true;
        };
        self.pump_uplink(vm);
        let uplink = self.uplinks.get(vm);
        uplink.is_some_and(|uplink| uplink.session.may_read(now))
    }

    /// The time of an uplink has passed: it may be read again, or has been silent.
    pub(super) fn expire_uplink(&mut self, client: usize, now: Instant) {
        let Some(vm) = self.uplinks.vm_of(client) else {
            return self.close_uplink_client(client);
        };
        let Some(uplink) = self.uplinks.get_mut(vm) else {
            return;
        };
        match uplink.session.expire(now) {
            Ok(()) => {
                self.pump_uplink(vm);
                self.uplink_clients.enqueue(client);
            }
            Err(end) => self.fail_uplink(vm, &end),
        }
    }

    /// Ends the uplink of a VM for what its broker did.
    pub(super) fn fail_uplink(&mut self, vm: PartitionKey, end: &SessionEnd) {
        let Some(client) = self.uplinks.get(vm).map(|uplink| uplink.client) else {
            return;
        };
        let name = partition_label(&self.fabric, vm);
        let why = visible(&end.to_string(), MAX_TEXT);
        tracing::warn!(vm = %name, "ended the uplink of a guest: {why}");
        self.end_uplink(vm, &why);
        self.refuse_uplink_client(client, &Refusal::Reset { cause: why });
    }

    /// The connection of an uplink has ended.
    pub(super) fn uplink_ended(&mut self, client: usize) {
        if let Some(vm) = self.uplinks.vm_of(client) {
            self.end_uplink(vm, "its broker has closed it");
        }
    }

    /// Forgets the uplink of a VM: withdraws its containers, and refuses what waits for its broker.
    fn end_uplink(&mut self, vm: PartitionKey, why: &str) {
        let Some(uplink) = self.uplinks.get(vm) else {
            return;
        };
        let numbers: Vec<_> = uplink.children().collect();
        for number in numbers {
            self.child_withdrawn(vm, number);
        }
        let Some(uplink) = self.uplinks.remove(vm) else {
            return;
        };
        if let Some(link) = self.link_of(vm) {
            uplink.ports().for_each(|port| link.release_port(port));
        }
        // Those of its containers have ended with them.
        for connection in uplink.incoming() {
            self.abort_pending(connection, &Refusal::PartitionOff);
        }
        for asker in uplink.into_askers() {
            self.answer_asker(vm, asker, Err(Silence::NoAnswer));
        }
        self.apply_effects();
        let name = partition_label(&self.fabric, vm);
        tracing::info!(vm = %name, "the broker in the guest is gone: {why}");
        self.audit_uplink(vm, "uplink_ended", Some(why));
        self.telemetry.publish(|| EventKind::GuestBrokerLost {
            partition: name,
            reason: why.to_owned(),
        });
    }

    /// Has the uplink of a VM follow its state: it ends with the VM, and its silence means nothing while the VM
    /// is paused.
    pub(super) fn uplink_state(&mut self, vm: PartitionKey, state: PartitionState) {
        let Some(uplink) = self.uplinks.get_mut(vm) else {
            return;
        };
        let client = uplink.client;
        if state.is_down() {
            self.end_uplink(vm, "the virtual machine is off");
            return self.close_uplink_client(client);
        }
        let is_paused = state == PartitionState::Paused;
        uplink.session.suspend(is_paused, Instant::now());
        self.pump_uplink(vm);
    }

    /// Records that an uplink has opened or ended.
    pub(super) fn audit_uplink(&mut self, vm: PartitionKey, action: &str, detail: Option<&str>) {
        let record = AuditRecord {
            category: AuditCategory::Change,
            action: action.into(),
            outcome: AuditOutcome::Allowed,
            detail: detail.map(str::to_owned),
            ..AuditRecord::default()
        };
        self.audit_of_guest(vm, record);
    }
}

/// The deadline of an uplink that has none: then only the guest or the core does something.
const IDLE: Duration = Duration::from_secs(3600);
