//! Taking clients from endpoints: each endpoint in its turn, and with a word to those for whom
//! there is no descriptor.
//!
//! Endpoints are watched edge-triggered, so one where clients may still wait is remembered here
//! until it has none. When the process is out of descriptors, a client cannot even be told so;
//! the reserve is one descriptor that is given up for as long as that takes. Where that fails as
//! well (the whole system has none) the endpoints are looked at again in a moment, and not before.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use hvsock_endpoint::BrokerMessage;
use hvsock_fabric::Refusal;
use hvsock_sys::{message, seqpacket};

use super::Core;
use crate::reply::refused;

/// Clients taken from all endpoints before connections get their turn.
const ACCEPTS: usize = 256;
/// Clients taken from one endpoint before others get their turn.
const ACCEPT_TURN: usize = 64;
/// How long to wait for descriptors where not even the reserve helped.
const AGAIN: Duration = Duration::from_millis(100);
/// How often the log tells of it.
const WARN_AGAIN: Duration = Duration::from_secs(10);

/// What the core knows about the lack of descriptors.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    reserve: Option<OwnedFd>,
    /// When endpoints are looked at again that had to be left alone.
    pub(super) again: Option<Instant>,
    warned: Option<Instant>,
}

impl Shortage {
    /// Takes the reserve, or tries to. A socket that is connected to nothing costs least.
    fn restock(&mut self) -> bool {
        if self.reserve.is_none() {
            self.reserve = UnixDatagram::unbound().ok().map(OwnedFd::from);
        }
        self.reserve.is_some()
    }
}

impl Core {
    /// Notes that clients wait at an endpoint.
    pub(super) fn mark_endpoint(&mut self, index: usize) {
        if let Some(endpoint) = self.endpoints.get_mut(index)
            && !endpoint.busy
        {
            endpoint.busy = true;
            self.busy_endpoints.push(index);
        }
    }

    /// Takes clients from every endpoint where some wait, a bounded number from each.
    pub(super) fn accept_turns(&mut self) {
        if self
            .shortage
            .again
            .is_some_and(|again| again <= Instant::now())
        {
            self.shortage.again = None;
            let all: Vec<usize> = self.endpoints.iter().map(|(index, _)| index).collect();
            all.into_iter().for_each(|index| self.mark_endpoint(index));
        }
        if self.busy_endpoints.is_empty() {
            return;
        }
        self.shortage.restock();
        let busy = std::mem::take(&mut self.busy_endpoints);
        let turn = (ACCEPTS / busy.len()).clamp(1, ACCEPT_TURN);
        for index in busy {
            let more = self.accept_turn(index, turn);
            if let Some(endpoint) = self.endpoints.get_mut(index) {
                endpoint.busy = more;
                self.busy_endpoints.extend(more.then_some(index));
            }
        }
    }

    /// One endpoint's turn; whether more clients may wait there.
    fn accept_turn(&mut self, index: usize, turn: usize) -> bool {
        for _ in 0..turn {
            let Some(endpoint) = self.endpoints.get(index) else {
                return false;
            };
            match seqpacket::accept(&endpoint.socket) {
                Ok(Some(socket)) => self.begin(socket, endpoint.partition),
                Ok(None) => return false,
                Err(error) => match self.turn_away(index, &error) {
                    Away::Told => {}
                    Away::NobodyWaits => return false,
                    Away::NotNow => {
                        self.shortage.again = Some(Instant::now() + AGAIN);
                        return false;
                    }
                },
            }
        }
        true
    }

    /// Tells the next client that there is no descriptor for it.
    fn turn_away(&mut self, index: usize, error: &io::Error) -> Away {
        let now = Instant::now();
        let warned = self.shortage.warned;
        if warned.is_none_or(|warned| now.duration_since(warned) >= WARN_AGAIN) {
            self.shortage.warned = Some(now);
            tracing::warn!(%error, "cannot take more clients");
        }
        let Some(endpoint) = self.endpoints.get(index) else {
            return Away::NobodyWaits;
        };
        // It makes room for one.
        drop(self.shortage.reserve.take());
        let away = match seqpacket::accept(&endpoint.socket) {
            Ok(Some(client)) => {
                let refusal = out_of_descriptors(error);
                self.tally.refused(&refusal);
                BrokerMessage::Refused(refused(&refusal)).encode(&mut self.buffer);
                // One that does not listen to its own socket misses it.
                let _ = message::send(&client, &self.buffer, &[]);
                Away::Told
            }
            // The kernel asks for a descriptor before it looks for a client.
            Ok(None) => Away::NobodyWaits,
            Err(_) => Away::NotNow,
        };
        if self.shortage.restock() {
            away
        } else {
            Away::NotNow
        }
    }
}

/// What became of a client for whom there is no descriptor.
enum Away {
    Told,
    NobodyWaits,
    NotNow,
}

/// Why there is no descriptor for a client or a connection.
pub(super) fn out_of_descriptors(error: &io::Error) -> Refusal {
    Refusal::LimitReached {
        which: format!("broker descriptors ({error})"),
    }
}
