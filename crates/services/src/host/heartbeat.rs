//! Hearing guests.
//!
//! Which guest it is that beats, the broker knows from the way that the connection came; what it
//! says is its own word, and cut to size here before anybody sees it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, Stream};
use hvsock::Peer;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::catalog::HEARTBEAT;
use crate::link::Offer;
use crate::wire::heartbeat::heartbeat_server::{Heartbeat, HeartbeatServer};
use crate::wire::heartbeat::{Beat, Facts, Order, State, SyncClock, order};

/// Bytes of a beat; one of this crate's agent has some hundreds.
const LARGEST_BEAT: usize = 32 * 1024;

/// From one beat to the next, at the least.
const SHORTEST: Duration = Duration::from_millis(200);

/// Bytes of a text.
const TEXT: usize = 256;

/// Addresses, and services.
const LIST: usize = 32;

/// Orders that wait for a guest.
const ORDERS: usize = 4;

/// What becomes of what is heard. Calls come from the task that hears, and must not wait.
pub trait Listener: Send + Sync + 'static {
    /// A guest begins to beat: this is the way to its agent for as long as it does.
    fn attend(&self, guest: &Peer, orders: Orders);

    /// A guest has beaten. Its facts are always there, and every text and list has its limit.
    fn beat(&self, guest: &Peer, beat: Beat);
}

/// The way to a guest's agent. It does not keep the call open.
#[derive(Clone, Debug)]
pub struct Orders(mpsc::WeakSender<Order>);

impl Orders {
    /// Has the guest measure and correct its clock; whether there was room for the order.
    pub fn sync_clock(&self) -> bool {
        let order = Some(order::Order::SyncClock(SyncClock {}));
        let guest = self.0.upgrade();
        guest.is_some_and(|guest| guest.try_send(Order { order }).is_ok())
    }
}

/// The service, which tells `listener` what it hears.
pub fn offer(listener: impl Listener) -> Offer {
    let service = Service {
        listener: Arc::new(listener),
        heard: Arc::default(),
    };
    let server = HeartbeatServer::new(service).max_decoding_message_size(LARGEST_BEAT);
    Offer::calls(&HEARTBEAT, Routes::new(server))
}

struct Service<L> {
    listener: Arc<L>,
    heard: Arc<Mutex<HashMap<String, AbortHandle>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[tonic::async_trait]
impl<L: Listener> Heartbeat for Service<L> {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<Order, Status>> + Send>>;

    async fn report(
        &self,
        request: Request<Streaming<Beat>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let peer = request.extensions().get::<Option<Peer>>();
        let guest = peer.cloned().flatten();
        let guest = guest.ok_or_else(|| Status::unauthenticated("it is not known who calls"))?;
        let (orders, taken) = mpsc::channel(ORDERS);
        self.listener.attend(&guest, Orders(orders.downgrade()));
        let partition = guest.partition().to_owned();
        let hearing = hear(Arc::clone(&self.listener), guest, request.into_inner());
        let hearing = tokio::spawn(async move {
            hearing.await;
            // The orders end with the beats.
            drop(orders);
        });
        // A guest has one heart: the newest call is its agent's, which knows of no older one.
        let mut heard = locked(&self.heard);
        heard.retain(|_, hearing| !hearing.is_finished());
        if let Some(older) = heard.insert(partition, hearing.abort_handle()) {
            older.abort();
        }
        drop(heard);
        let orders = stream::unfold(taken, async |mut taken| {
            Some((Ok(taken.recv().await?), taken))
        });
        Ok(Response::new(Box::pin(orders)))
    }
}

/// Hears a guest out.
async fn hear<L: Listener>(listener: Arc<L>, guest: Peer, mut beats: Streaming<Beat>) {
    let mut facts = Facts::default();
    while let Ok(Some(beat)) = beats.message().await {
        listener.beat(&guest, bounded(beat, &mut facts));
        // One that beats faster has to wait: its connection fills up.
        tokio::time::sleep(SHORTEST).await;
    }
}

/// A beat cut to size, with the `facts` of the connection so far.
fn bounded(mut beat: Beat, facts: &mut Facts) -> Beat {
    if let Some(new) = beat.facts.take() {
        *facts = bounded_facts(new);
    }
    beat.facts = Some(facts.clone());
    shorten(&mut beat.manager);
    if State::try_from(beat.state).is_err() {
        beat.set_state(State::Unspecified);
    }
    beat
}

fn bounded_facts(mut facts: Facts) -> Facts {
    for text in [
        &mut facts.boot_id,
        &mut facts.agent,
        &mut facts.os,
        &mut facts.kernel,
        &mut facts.hostname,
    ] {
        shorten(text);
    }
    facts
        .addresses
        .retain(|text| text.parse::<IpAddr>().is_ok());
    facts.addresses.truncate(LIST);
    facts.services.truncate(LIST);
    for service in &mut facts.services {
        shorten(&mut service.problem);
    }
    facts
}

/// Cuts a text where a character ends.
fn shorten(text: &mut String) {
    let end = text.floor_char_boundary(TEXT);
    text.truncate(end);
    text.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::heartbeat::Service;

    proptest! {
        #[test]
        fn no_guest_can_say_more_than_fits(
            texts in proptest::collection::vec("\\PC{0,400}", 7),
            items in 0..200usize,
            state in any::<i32>(),
        ) {
            let mut kept = Facts::default();
            let facts = Facts {
                boot_id: texts[0].clone(),
                agent: texts[1].clone(),
                os: texts[2].clone(),
                kernel: texts[3].clone(),
                hostname: texts[4].clone(),
                addresses: (0..items).map(|n| match n % 2 {
                    0 => format!("10.0.0.{}", n % 256),
                    _ => texts[5].clone(),
                }).collect(),
                services: (0..items).map(|_| Service {
                    problem: texts[6].clone(),
                    ..Service::default()
                }).collect(),
            };
            let manager = texts[0].clone();
            let beat = Beat { facts: Some(facts), manager, state, ..Beat::default() };
            let beat = bounded(beat, &mut kept);
            prop_assert_eq!(beat.facts.as_ref(), Some(&kept));
            prop_assert!(kept.addresses.len() <= LIST && kept.services.len() <= LIST);
            prop_assert!(kept.addresses.iter().all(|a| a.parse::<IpAddr>().is_ok()));
            for text in [&kept.boot_id, &kept.agent, &kept.os, &kept.kernel, &kept.hostname,
                &beat.manager] {
                prop_assert!(text.len() <= TEXT);
                prop_assert!(texts.iter().any(|all| all.starts_with(text.as_str())));
            }
            prop_assert!(kept.services.iter().all(|service| service.problem.len() <= TEXT));
            prop_assert!(State::try_from(beat.state).is_ok());
            // The next beat has no facts, and what was said before still holds.
            let next = bounded(Beat::default(), &mut kept.clone());
            prop_assert_eq!(next.facts, Some(kept));
        }
    }
}
