//! Sends a heartbeat to the host every second.
//!
//! A beat is made when it is sent, from data that is available without waiting: [`load`] reads a
//! few files in `/proc`; [`facts`] are refreshed every few seconds and when a service's status
//! changes; a task of its own ([`manager`]) queries the service manager.

mod facts;
mod load;
mod manager;

use std::convert::Infallible;
use std::mem;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use hvsock::{Endpoint, VmId};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::Status;

use crate::catalog::HEARTBEAT;
use crate::guest::clock;
use crate::link::backoff::Backoff;
use crate::link::{CallError, ServiceStatus, Target};
use crate::wire::heartbeat::heartbeat_client::HeartbeatClient;
use crate::wire::heartbeat::{Beat, Facts, command};

/// The interval between beats.
const BEAT: Duration = Duration::from_secs(1);

/// How long the first beat waits for the services to listen.
const OFFERED: Duration = Duration::from_secs(2);

/// The facts are refreshed every this many beats.
const FACTS_INTERVAL: u64 = 5;

/// The keepalive timeout of the connection: a host that vanished is detected, and the connection renewed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);

/// The largest command of the host, in bytes.
const LARGEST_COMMAND: usize = 16 * 1024;

/// The source of the beats.
struct BeatSource {
    sequence: u64,
    start: watch::Receiver<manager::ManagerState>,
    statuses: Vec<ServiceStatus>,
    facts: Facts,
    clock: clock::ClockHandle,
}

impl BeatSource {
    /// Makes the next beat; with all facts if it is the `first` of a connection.
    fn beat(&mut self, first: bool) -> Beat {
        self.sequence += 1;
        let start = self.start.borrow().clone();
        let mut beat = Beat {
            sequence: self.sequence,
            manager: start.word,
            clock: self.clock.report(),
            ..Beat::default()
        };
        beat.set_state(start.state);
        load::fill(&mut beat);
        let changed = facts::services(&self.statuses) != self.facts.services;
        if first || changed || self.sequence.is_multiple_of(FACTS_INTERVAL) {
            let facts = facts::now(&self.statuses);
            if first || facts != self.facts {
                self.facts.clone_from(&facts);
                beat.facts = Some(facts);
            }
        }
        beat
    }
}

/// Sends beats until dropped, over one connection after the other.
pub(super) async fn run(
    endpoint: Endpoint,
    mut statuses: Vec<ServiceStatus>,
    clock: clock::ClockHandle,
) {
    // A host that waits for a guest's first beat wants to use the guest's services then.
    let attempts = async {
        for status in &mut statuses {
            status.first_attempt().await;
        }
    };
    // A service without a first attempt is reported as not offered.
    let _ = timeout(OFFERED, attempts).await;
    let target = Target::new(endpoint, VmId::PARENT);
    let mut source = BeatSource {
        sequence: 0,
        start: manager::watch(),
        statuses,
        facts: Facts::default(),
        clock,
    };
    let mut backoff = Backoff::default();
    let mut logged = false;
    loop {
        let before = source.sequence;
        let Err(error) = report(&target, &mut source).await;
        // The first beat is always sent. A second one means that the host accepts them.
        if source.sequence > before + 1 {
            (backoff, logged) = (Backoff::default(), false);
        }
        if !mem::replace(&mut logged, true) {
            tracing::warn!("cannot send heartbeats to the host: {error}");
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Sends beats over one connection until it ends.
async fn report(target: &Target, source: &mut BeatSource) -> Result<Infallible, CallError> {
    let channel = target
        .channel_with_keepalive(&HEARTBEAT, IDLE_TIMEOUT)
        .await?;
    let mut client = HeartbeatClient::new(channel).max_decoding_message_size(LARGEST_COMMAND);
    let clock = source.clock.clone();
    let (beats, made) = mpsc::channel(1);
    let sending = async {
        let mut ticks = interval(BEAT);
        // After a pause of the machine a single beat replaces the missed ones.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut first = true;
        loop {
            ticks.tick().await;
            let slot = beats.reserve().await.map_err(|_| over())?;
            slot.send(source.beat(mem::take(&mut first)));
        }
    };
    let handling = async {
        let mut commands = client.report(received(made)).await?.into_inner();
        while let Some(command) = commands.message().await? {
            match command.command {
                Some(command::Command::SyncClock(_)) => clock.measure_now(),
                // A command of a newer host.
                None => {}
            }
        }
        Err(over())
    };
    tokio::select! {
        end = sending => end,
        end = handling => end,
    }
}

/// Turns a channel into a stream.
fn received<T>(receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    stream::unfold(receiver, async |mut receiver| {
        Some((receiver.recv().await?, receiver))
    })
}

fn over() -> CallError {
    Status::unavailable("the host has ended the call").into()
}
