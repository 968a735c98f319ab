//! Connects to the host.

use std::time::Instant;

use hvsock_address::{ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::Refused;
use hvsock_endpoint::uplink::{ConnectUp, GuestFrame, Request};
use hvsock_fabric::{ConnectionId, Refusal};

use super::super::event::UplinkEvent;
use super::connects::{Stage, Upward};
use super::{Client, Output, Phase, REASON_WAIT};

impl Client {
    /// Requests a connection to the host, of a container or of the machine itself.
    pub(in crate::uplink_client) fn connect(
        &mut self,
        now: Instant,
        id: ConnectionId,
        child: Option<VmId>,
        service: ServiceId,
        deadline: Instant,
    ) {
        let upward = Upward {
            child,
            service,
            deadline,
            stage: Stage::Waiting,
        };
        self.upwards.add(id, upward);
        self.proceed(now);
    }

    /// Gives up a connect.
    pub(in crate::uplink_client) fn cancel(&mut self, now: Instant, id: ConnectionId) {
        if let Some(upward) = self.upwards.remove(id) {
            self.gave_up(id, &upward);
            self.proceed(now);
        }
    }

    /// The stream of a connect could not be connected. The host may say why.
    pub(in crate::uplink_client) fn stream_failed(
        &mut self,
        now: Instant,
        id: ConnectionId,
        refusal: Refusal,
    ) {
        let asked = self.upwards.get(id).map(|upward| &upward.stage);
        match asked {
            Some(Stage::Connecting { asked: true }) if self.is_open() => {
                self.upwards.broken(id, refusal, now + REASON_WAIT);
            }
            Some(_) => {
                self.upwards.remove(id);
                self.outputs.push_back(Output::Fail(id, refusal));
            }
            None => {}
        }
        self.proceed(now);
    }

    /// The stream of a connect is connected.
    pub(in crate::uplink_client) fn stream_done(&mut self, now: Instant, id: ConnectionId) {
        self.upwards.remove(id);
        self.proceed(now);
    }

    fn is_asked(&self, id: ConnectionId) -> bool {
        let found = self.upwards.get(id);
        found.is_some_and(|upward| upward.stage == Stage::Asked)
    }

    pub(super) fn connect_port(&mut self, request: Request, port: u32) {
        let id = ConnectionId::from_u64(request.0);
        // An answer to what was given up comes late.
        if self.is_asked(id)
            && let Some(upward) = self.upwards.get(id)
        {
            let deadline = upward.deadline;
            self.upwards
                .set_stage(id, Stage::Connecting { asked: true });
            self.outputs
                .push_back(Output::Connect { id, port, deadline });
        }
    }

    /// The host has refused a connect: at once, or when its stream arrived.
    pub(super) fn connect_refused(&mut self, request: Request, reason: &Refused) {
        let id = ConnectionId::from_u64(request.0);
        let refusal = Refusal::from_wire(reason.code, &reason.detail);
        match self.upwards.get(id).map(|upward| &upward.stage) {
            Some(Stage::Asked | Stage::Broken(_)) => {}
            Some(Stage::Connecting { asked: true }) => self.outputs.push_back(Output::Abort(id)),
            // It was never asked for.
            Some(Stage::Waiting | Stage::Connecting { asked: false }) => return,
            // The stream seemed to be connected.
            None => return self.tell(UplinkEvent::StreamRefused(id, refusal)),
        }
        self.upwards.remove(id);
        self.outputs.push_back(Output::Fail(id, refusal));
    }

    /// Moves the connects on that wait.
    pub(super) fn proceed(&mut self, now: Instant) {
        match self.phase {
            Phase::Open => {
                while let Some((id, upward)) = self.upwards.next_for_host() {
                    self.ask(now, id, &upward);
                }
            }
            _ if self.settles.is_some() => {}
            _ => {
                while let Some((id, upward)) = self.upwards.next_waiting() {
                    self.go_without(id, &upward);
                }
            }
        }
    }

    fn ask(&mut self, now: Instant, id: ConnectionId, upward: &Upward) {
        let Some(child) = self.number(upward.child) else {
            self.upwards.remove(id);
            self.outputs
                .push_back(Output::Fail(id, Refusal::NotReachable));
            return;
        };
        self.upwards.set_stage(id, Stage::Asked);
        let vm = match upward.child {
            None => VmId::PARENT,
            Some(_) => self.host,
        };
        let left = upward.deadline.saturating_duration_since(now).as_millis();
        self.send(GuestFrame::Connect(ConnectUp {
            request: Request(id.as_u64()),
            child,
            // 0 would be no timeout.
            timeout_ms: u32::try_from(left).unwrap_or(u32::MAX).max(1),
            address: SockAddrHv::new(vm, upward.service),
        }));
    }

    /// Connects without having asked the host, or refuses that.
    fn go_without(&mut self, id: ConnectionId, upward: &Upward) {
        let port = upward.service.port_for_guests();
        match (upward.child, port) {
            (None, Some(port)) => {
                self.upwards
                    .set_stage(id, Stage::Connecting { asked: false });
                let deadline = upward.deadline;
                self.outputs
                    .push_back(Output::Connect { id, port, deadline });
            }
            (child, _) => {
                self.upwards.remove(id);
                let refusal = match child {
                    None => Refusal::ServiceNotMappable,
                    Some(_) => Refusal::PartitionOff,
                };
                self.outputs.push_back(Output::Fail(id, refusal));
            }
        }
    }

    /// Ends what is being done for a connect that is gone.
    pub(super) fn gave_up(&mut self, id: ConnectionId, upward: &Upward) {
        let asked = match upward.stage {
            // The host has refused the one that is broken, or is about to.
            Stage::Waiting | Stage::Broken(_) => false,
            Stage::Asked => true,
            Stage::Connecting { asked } => {
                self.outputs.push_back(Output::Abort(id));
                asked
            }
        };
        if asked && self.is_open() {
            let request = Request(id.as_u64());
            self.send(GuestFrame::Cancel { request });
        }
    }
}
