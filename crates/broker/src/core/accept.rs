//! Accepts clients from endpoint sockets, round robin with a bounded number per endpoint.
//!
//! Endpoints are watched edge-triggered, so an endpoint stays in the busy list until `accept` would
//! block. When the process runs out of descriptors (`EMFILE`), it closes one reserve descriptor to
//! accept and refuse the next client. If that fails too (`ENFILE`), the endpoints are retried after
//! a delay.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use hvsock_endpoint::BrokerMessage;
use hvsock_fabric::Refusal;
use hvsock_sys::{message, seqpacket};

use super::Core;
use crate::reply::refused;

/// Most clients accepted from all endpoints in one iteration of the loop.
const ACCEPTS_PER_ITERATION: usize = 256;
/// Most clients accepted from one endpoint in one iteration of the loop.
const ACCEPTS_PER_ENDPOINT: usize = 64;
/// Delay before the next try when even the reserve descriptor did not help.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// Rate limit of the log line about missing descriptors.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// State of a shortage of descriptors.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    reserve: Option<OwnedFd>,
    /// When to retry the endpoints.
    pub(super) retry_at: Option<Instant>,
    warned: Option<Instant>,
}

impl Shortage {
    /// Opens the reserve descriptor if it is closed; `false` on failure. An unbound socket is the
    /// cheapest kind.
    fn refill_reserve(&mut self) -> bool {
        if self.reserve.is_none() {
            self.reserve = UnixDatagram::unbound().ok().map(OwnedFd::from);
        }
        self.reserve.is_some()
    }
}

impl Core {
    /// Marks an endpoint as having clients to accept.
    pub(super) fn mark_endpoint(&mut self, index: usize) {
        if let Some(endpoint) = self.endpoints.get_mut(index)
            && !endpoint.busy
        {
            endpoint.busy = true;
            self.busy_endpoints.push(index);
        }
    }

    /// Accepts clients from every busy endpoint, a bounded number from each.
    pub(super) fn accept_clients(&mut self) {
        let retry_at = self.shortage.retry_at;
        if retry_at.is_some_and(|retry_at| retry_at <= Instant::now()) {
            self.shortage.retry_at = None;
            let all: Vec<usize> = self.endpoints.iter().map(|(index, _)| index).collect();
            all.into_iter().for_each(|index| self.mark_endpoint(index));
        }
        if self.busy_endpoints.is_empty() {
            return;
        }
        self.shortage.refill_reserve();
        let busy = std::mem::take(&mut self.busy_endpoints);
        let limit = (ACCEPTS_PER_ITERATION / busy.len()).clamp(1, ACCEPTS_PER_ENDPOINT);
        for index in busy {
            let more = self.accept_from(index, limit);
            if let Some(endpoint) = self.endpoints.get_mut(index) {
                endpoint.busy = more;
                self.busy_endpoints.extend(more.then_some(index));
            }
        }
    }

    /// Accepts up to `limit` clients from one endpoint. Returns whether more may be pending.
    fn accept_from(&mut self, index: usize, limit: usize) -> bool {
        for _ in 0..limit {
            let Some(endpoint) = self.endpoints.get(index) else {
                return false;
            };
            match seqpacket::accept(&endpoint.socket) {
                Ok(Some(socket)) => self.open_session(socket, endpoint.partition),
                Ok(None) => return false,
                Err(error) => match self.reject_client(index, &error) {
                    Rejection::Sent => {}
                    Rejection::NoClient => return false,
                    Rejection::NoDescriptor => {
                        self.shortage.retry_at = Some(Instant::now() + RETRY_DELAY);
                        return false;
                    }
                },
            }
        }
        true
    }

    /// Accepts the next client with the reserve descriptor and refuses it.
    fn reject_client(&mut self, index: usize, error: &io::Error) -> Rejection {
        let now = Instant::now();
        let warned = self.shortage.warned;
        if warned.is_none_or(|warned| now.duration_since(warned) >= WARN_INTERVAL) {
            self.shortage.warned = Some(now);
            tracing::warn!(%error, "cannot accept clients: no free descriptor");
        }
        let Some(endpoint) = self.endpoints.get(index) else {
            return Rejection::NoClient;
        };
        // This frees the descriptor that `accept` needs.
        drop(self.shortage.reserve.take());
        let rejection = match seqpacket::accept(&endpoint.socket) {
            Ok(Some(client)) => {
                let refusal = descriptor_limit(error);
                self.counters.refused(&refusal);
                BrokerMessage::Refused(refused(&refusal)).encode(&mut self.buffer);
                // A client with a full receive queue misses the refusal.
                let _ = message::send(&client, &self.buffer, &[]);
                Rejection::Sent
            }
            // The kernel allocates a descriptor before it looks for a client, so `accept` can have
            // failed with no client pending.
            Ok(None) => Rejection::NoClient,
            Err(_) => Rejection::NoDescriptor,
        };
        if self.shortage.refill_reserve() {
            rejection
        } else {
            Rejection::NoDescriptor
        }
    }
}

/// The outcome of [`Core::reject_client`].
enum Rejection {
    /// The client was accepted and refused.
    Sent,
    /// No client was pending.
    NoClient,
    /// Even with the reserve closed there was no descriptor.
    NoDescriptor,
}

/// The refusal for a client or connection that the broker has no descriptor for.
pub(super) fn descriptor_limit(error: &io::Error) -> Refusal {
    Refusal::LimitReached {
        which: format!("broker descriptors ({error})"),
    }
}
