//! The heartbeat service: receives the beats of guests.
//!
//! The broker determines the guest of a beat from the connection. The content is only the guest's
//! own claim; it is validated and truncated here before anything else uses it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream::{self, Stream};
use hvsock::Peer;
use hvsock::tokio::HvConnectInfo;
use hvsock_sys::sync::lock;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::catalog::HEARTBEAT;
use crate::link::ServiceServer;
use crate::text::truncated;
use crate::wire::heartbeat::heartbeat_server::{Heartbeat, HeartbeatServer};
use crate::wire::heartbeat::{Beat, Command, Facts, State, SyncClock, command};

/// The largest beat, in bytes. The beats of this crate's agent have a few hundred.
const LARGEST_BEAT: usize = 32 * 1024;

/// The rate limit: the shortest time between two beats of one guest.
const SHORTEST: Duration = Duration::from_millis(200);

/// The longest text, in bytes.
const TEXT: usize = 256;

/// The most addresses, and the most services.
const LIST: usize = 32;

/// How many commands may be queued for a guest.
const COMMANDS: usize = 4;

/// Receives liveness reports. The methods are called from the task that reads the connection, and
/// must not block.
#[doc(alias = "liveness")]
pub trait HeartbeatListener: Send + Sync + 'static {
    /// A guest's agent has connected. `commands` reaches it for as long as the connection lasts.
    fn connected(&self, guest: &Peer, commands: GuestCommands);

    /// A beat has arrived. Its facts are always present, and every text and list is bounded.
    fn beat(&self, guest: &Peer, beat: Beat);
}

/// Sends commands to a guest's agent. It does not keep the connection open.
#[derive(Clone, Debug)]
pub struct GuestCommands(mpsc::WeakSender<Command>);

impl GuestCommands {
    /// Asks the guest to measure and correct its clock. Returns whether the command was queued: not
    /// if the agent has disconnected or the queue is full.
    pub fn sync_clock(&self) -> bool {
        let command = Some(command::Command::SyncClock(SyncClock {}));
        let guest = self.0.upgrade();
        guest.is_some_and(|guest| guest.try_send(Command { command }).is_ok())
    }
}

/// The service. It reports to `listener`.
pub fn server(listener: impl HeartbeatListener) -> ServiceServer {
    let service = Service {
        listener: Arc::new(listener),
        connected: Arc::default(),
    };
    let server = HeartbeatServer::new(service).max_decoding_message_size(LARGEST_BEAT);
    ServiceServer::calls(&HEARTBEAT, Routes::new(server))
}

struct Service<L> {
    listener: Arc<L>,
    connected: Arc<Mutex<HashMap<String, AbortHandle>>>,
}

#[tonic::async_trait]
impl<L: HeartbeatListener> Heartbeat for Service<L> {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<Command, Status>> + Send>>;

    async fn report(
        &self,
        request: Request<Streaming<Beat>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let info = request.extensions().get::<HvConnectInfo>();
        let guest = info.and_then(HvConnectInfo::peer).cloned();
        let guest = guest.ok_or_else(|| Status::unauthenticated("the caller is unknown"))?;
        let (commands, queued) = mpsc::channel(COMMANDS);
        self.listener
            .connected(&guest, GuestCommands(commands.downgrade()));
        let partition = guest.partition().to_owned();
        let reading = read_beats(Arc::clone(&self.listener), guest, request.into_inner());
        let reading = tokio::spawn(async move {
            reading.await;
            // The command stream ends with the beats.
            drop(commands);
        });
        // One agent for each guest: a new call replaces an older one, which is from a previous agent.
        let mut connected = lock(&self.connected);
        connected.retain(|_, reading| !reading.is_finished());
        if let Some(older) = connected.insert(partition, reading.abort_handle()) {
            older.abort();
        }
        drop(connected);
        let commands = stream::unfold(queued, async |mut queued| {
            Some((Ok(queued.recv().await?), queued))
        });
        Ok(Response::new(Box::pin(commands)))
    }
}

/// Reads beats until the call ends.
async fn read_beats<L: HeartbeatListener>(
    listener: Arc<L>,
    guest: Peer,
    mut beats: Streaming<Beat>,
) {
    let mut facts = Facts::default();
    while let Ok(Some(beat)) = beats.message().await {
        listener.beat(&guest, bounded(beat, &mut facts));
        // Backpressure for a guest that beats faster: its connection fills up.
        tokio::time::sleep(SHORTEST).await;
    }
}

/// Truncates a beat to the limits, and adds the connection's last `facts`.
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

/// Truncates a text to the limit at a character boundary.
fn shorten(text: &mut String) {
    text.truncate(truncated(text, TEXT).len());
    text.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::heartbeat::Service;

    proptest! {
        #[test]
        fn every_beat_is_bounded(
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
            // A beat without facts keeps the facts of the connection.
            let next = bounded(Beat::default(), &mut kept.clone());
            prop_assert_eq!(next.facts, Some(kept));
        }
    }
}
