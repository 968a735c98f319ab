//! A VM's traffic in the document of its device.

use std::time::Instant;

use hvsock_fabric::Refusal;
use hvsock_virtio::queue::Chain;
use hvsock_virtio::{Config, Handle, HandleSnapshot, Muxer, MuxerSnapshot};
use serde::{Deserialize, Serialize};

use super::{Traffic, request_of};
use crate::guest_link::{LinkEvent, RequestId, Resuming};
use crate::handover::{Exports, HandoverError, Imports};
use crate::vhost_user::links::snapshot::LinksState;
use crate::vhost_user::queues::Queues;
use crate::vhost_user::queues::snapshot::QueuesState;
use crate::vhost_user::transport_reset::TransportReset;
use crate::vhost_user::transport_reset::snapshot::TransportResetState;

/// A VM's traffic.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) struct TrafficState {
    pub(in super::super) queues: QueuesState,
    muxer: MuxerSnapshot,
    links: LinksState,
    transport_reset: TransportResetState,
    /// The requests that the core has not answered.
    requests: Vec<(u64, HandleSnapshot)>,
    next_request: u64,
    last_of_past_driver: u64,
    invalid_chains_reported: u64,
}

impl Traffic {
    pub(in super::super) fn hand_over(
        &self,
        exports: &mut Exports,
        now: Instant,
    ) -> Result<TrafficState, HandoverError> {
        let Self {
            queues,
            mux,
            links,
            // It was flushed.
            reports: _,
            transport_reset,
            requests,
            next_request,
            last_of_past_driver,
            idle: _,
            chain: _,
            invalid_chains_reported,
            unknown: _,
            asks_again: _,
        } = self;
        let mut requests: Vec<_> = requests
            .iter()
            .map(|(request, handle)| (request.0, (*handle).into()))
            .collect();
        requests.sort_unstable_by_key(|(request, _)| *request);
        Ok(TrafficState {
            queues: queues.hand_over(exports)?,
            muxer: mux.snapshot(now),
            links: links.hand_over(exports)?,
            transport_reset: transport_reset.state(now),
            requests,
            next_request: *next_request,
            last_of_past_driver: last_of_past_driver.0,
            invalid_chains_reported: *invalid_chains_reported,
        })
    }

    /// Takes the traffic of a document. `self` has none yet. `queues` are those of the document.
    pub(in super::super) fn resume(
        &mut self,
        state: TrafficState,
        queues: impl FnOnce(QueuesState, &mut Imports) -> Result<Queues, HandoverError>,
        imports: &mut Imports,
        config: Config,
        resuming: &Resuming<'_>,
        now: Instant,
    ) -> Result<(), HandoverError> {
        let TrafficState {
            queues: vrings,
            muxer,
            links,
            transport_reset,
            requests,
            next_request,
            last_of_past_driver,
            invalid_chains_reported,
        } = state;
        self.queues = queues(vrings, imports)?;
        let mux = Muxer::restore(muxer, config, now);
        self.mux = mux.map_err(|error| HandoverError::damaged(error.to_string()))?;
        let not_resumed = self.links.resume(links, imports, &mut self.mux, resuming)?;
        self.transport_reset = TransportReset::restore(transport_reset, now)?;
        self.next_request = next_request.min(u64::MAX / 2);
        self.last_of_past_driver = RequestId(last_of_past_driver);
        self.invalid_chains_reported = invalid_chains_reported;
        self.unknown = not_resumed.unknown;
        self.asks_again = true;
        for (request, handle) in requests {
            let handle = Handle::from(handle);
            let is_new = request <= self.next_request && self.is_unanswered(handle);
            if !is_new || self.requests.insert(RequestId(request), handle).is_some() {
                let what = "a guest's request is none of its connections";
                return Err(HandoverError::inconsistent(what));
            }
        }
        for handle in not_resumed.requests {
            self.next_request += 1;
            self.requests.insert(RequestId(self.next_request), handle);
        }
        self.chain = Chain::default();
        Ok(())
    }

    fn is_unanswered(&self, handle: Handle) -> bool {
        let is_taken = self.requests.values().any(|other| *other == handle);
        self.mux.key(handle).is_some() && !is_taken && self.links.slot_of(handle).is_none()
    }

    /// Does what a resumed device has to do first, if this is one.
    pub(in super::super) fn begin(&mut self) {
        self.links.wake_ends();
        for slot in std::mem::take(&mut self.unknown) {
            let cause = "the connection was lost when the broker was replaced".into();
            self.reset(slot, &Refusal::Reset { cause });
        }
        if !std::mem::take(&mut self.asks_again) {
            return;
        }
        self.links.resume_lingering();
        let mut requests: Vec<_> = self.requests.iter().map(|(id, to)| (*id, *to)).collect();
        requests.sort_unstable_by_key(|(id, _)| *id);
        for (id, handle) in requests {
            if let Some(key) = self.mux.key(handle) {
                self.send(LinkEvent::Request(id, request_of(&key)));
            }
        }
    }
}
