//! Connections that the host requests.

use std::time::Instant;

use hvsock_address::{ServiceId, VmId};
use hvsock_endpoint::uplink::{GuestFrame, Incoming as IncomingFrame, MAX_PENDING, Request};
use hvsock_fabric::Refusal;

use super::super::event::{Incoming, UplinkEvent};
use super::incoming::{Downward, NotAdded};
use super::{Client, INCOMING_TIMEOUT, Output, millis};
use crate::reply::refused;

impl Client {
    /// Accepts a connection that the host has requested: its stream is to be expected.
    pub(in crate::uplink_client) fn expect(&mut self, request: Request) {
        if self.downwards.accept(request) {
            self.outputs.push_back(Output::Listen { request });
        }
    }

    /// Refuses a connection that the host has requested.
    pub(in crate::uplink_client) fn refuse_incoming(
        &mut self,
        request: Request,
        refusal: &Refusal,
    ) {
        if self.downwards.remove(request).is_some() {
            self.send_refused(request, refusal);
        }
    }

    /// A port listens for the stream of a request, or none can.
    pub(in crate::uplink_client) fn listening(
        &mut self,
        request: Request,
        port: Result<u32, Refusal>,
    ) {
        match port {
            Ok(port) if self.downwards.contains(request) => {
                self.send(GuestFrame::IncomingPort { request, port });
            }
            // It was given up meanwhile.
            Ok(_) => self.outputs.push_back(Output::StopListening(request)),
            Err(refusal) => self.refuse_incoming(request, &refusal),
        }
    }

    /// The stream of a request has arrived, and nobody listens for it any more. Returns the container and the
    /// service.
    pub(in crate::uplink_client) fn arrived(
        &mut self,
        request: Request,
    ) -> Option<(Option<VmId>, ServiceId)> {
        let downward = self.downwards.remove(request)?;
        Some((downward.child, downward.service))
    }

    pub(super) fn incoming(&mut self, now: Instant, frame: IncomingFrame) {
        let request = frame.request;
        let Some(child) = self.child(frame.child) else {
            return self.send_refused(request, &Refusal::NotReachable);
        };
        let timeout = match frame.timeout_ms {
            0 => INCOMING_TIMEOUT,
            ms => millis(ms).min(INCOMING_TIMEOUT),
        };
        let downward = Downward {
            child,
            service: frame.service,
            deadline: now + timeout,
            accepted: false,
        };
        match self.downwards.add(request, downward) {
            Ok(()) => self.tell(UplinkEvent::Incoming(Incoming {
                request,
                child,
                service: frame.service,
                timeout,
            })),
            Err(NotAdded::Full) => {
                let which = format!("{MAX_PENDING} requests of the host without an answer");
                self.send_refused(request, &Refusal::LimitReached { which });
            }
            Err(NotAdded::Twice) => self.violation(now, "the number of another INCOMING"),
        }
    }

    pub(super) fn asks_to_explain(&mut self, frame: IncomingFrame) {
        match self.child(frame.child) {
            Some(child) => self.tell(UplinkEvent::Explain(Incoming {
                request: frame.request,
                child,
                service: frame.service,
                timeout: millis(frame.timeout_ms),
            })),
            None => self.explained(frame.request, refused(&Refusal::NotReachable)),
        }
    }

    /// Ends what is being done for a request of the host that is gone.
    pub(super) fn gone(&mut self, request: Request, downward: Downward, refusal: &Refusal) {
        match downward.accepted {
            true => self.outputs.push_back(Output::StopListening(request)),
            false => self.send_refused(request, refusal),
        }
    }

    fn send_refused(&mut self, request: Request, refusal: &Refusal) {
        if self.is_open() {
            let reason = refused(refusal);
            self.send(GuestFrame::IncomingRefused { request, reason });
        }
    }
}
