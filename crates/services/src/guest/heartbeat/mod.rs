//! Telling the host that this guest lives, once a second.
//!
//! A beat is made when it is sent, of what can be had without waiting: [`vitals`] are a few reads of
//! `/proc`, [`facts`] are looked at every few seconds and when a service stands otherwise, and the service manager is asked by a task
//! of its own ([`manager`]).

mod facts;
mod manager;
mod vitals;

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
use crate::link::{CallError, Pause, Standing, Target};
use crate::wire::heartbeat::heartbeat_client::HeartbeatClient;
use crate::wire::heartbeat::{Beat, Facts, order};

/// From one beat to the next.
const BEAT: Duration = Duration::from_secs(1);

/// How long the first beat waits for the services to be offered.
const OFFERED: Duration = Duration::from_secs(2);

/// Beats from one look at the facts to the next.
const LOOK: u64 = 5;

/// How long a host may leave the connection without a sign of its own: one that is gone without a
/// word is noticed by this, and the connection made anew.
const DEAF: Duration = Duration::from_secs(3);

/// Bytes of an order of the host's.
const LARGEST_ORDER: usize = 16 * 1024;

/// What beats are made of.
struct Source {
    sequence: u64,
    start: watch::Receiver<manager::Start>,
    standings: Vec<Standing>,
    facts: Facts,
    clock: clock::Known,
}

impl Source {
    /// The next beat; with all facts if it is the `first` of a connection.
    fn beat(&mut self, first: bool) -> Beat {
        self.sequence += 1;
        let start = self.start.borrow().clone();
        let mut beat = Beat {
            sequence: self.sequence,
            manager: start.word,
            clock: self.clock.told(),
            ..Beat::default()
        };
        beat.set_state(start.state);
        vitals::fill(&mut beat);
        let news = facts::services(&self.standings) != self.facts.services;
        if first || news || self.sequence.is_multiple_of(LOOK) {
            let facts = facts::now(&self.standings);
            if first || facts != self.facts {
                self.facts.clone_from(&facts);
                beat.facts = Some(facts);
            }
        }
        beat
    }
}

/// Beats until dropped, over one connection after the other.
pub(super) async fn run(endpoint: Endpoint, mut standings: Vec<Standing>, clock: clock::Known) {
    // Who waits to hear a guest wants to use it then.
    let tried = async {
        for standing in &mut standings {
            standing.tried().await;
        }
    };
    // One that cannot even be tried is told of as such.
    let _ = timeout(OFFERED, tried).await;
    let target = Target::new(endpoint, VmId::PARENT);
    let mut source = Source {
        sequence: 0,
        start: manager::watch(),
        standings,
        facts: Facts::default(),
        clock,
    };
    let mut pause = Pause::default();
    let mut told = false;
    loop {
        let before = source.sequence;
        let Err(error) = report(&target, &mut source).await;
        // The first beat goes out in any case; a host that takes a second one is there.
        if source.sequence > before + 1 {
            (pause, told) = (Pause::default(), false);
        }
        if !mem::replace(&mut told, true) {
            tracing::warn!("the host does not hear this guest: {error}");
        }
        tokio::time::sleep(pause.next()).await;
    }
}

/// Beats over one connection until it ends.
async fn report(target: &Target, source: &mut Source) -> Result<Infallible, CallError> {
    let channel = target.channel_with_pulse(&HEARTBEAT, DEAF).await?;
    let mut client = HeartbeatClient::new(channel).max_decoding_message_size(LARGEST_ORDER);
    let clock = source.clock.clone();
    let (beats, made) = mpsc::channel(1);
    let beating = async {
        let mut ticks = interval(BEAT);
        // After a pause of the machine one beat says all that the missed ones would have.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut first = true;
        loop {
            ticks.tick().await;
            let room = beats.reserve().await.map_err(|_| over())?;
            room.send(source.beat(mem::take(&mut first)));
        }
    };
    let obeying = async {
        let mut orders = client.report(received(made)).await?.into_inner();
        while let Some(order) = orders.message().await? {
            match order.order {
                Some(order::Order::SyncClock(_)) => clock.ask(),
                // Of a host that is newer than this agent.
                None => {}
            }
        }
        Err(over())
    };
    tokio::select! {
        end = beating => end,
        end = obeying => end,
    }
}

/// What a channel receives, as a stream.
fn received<T>(receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    stream::unfold(receiver, async |mut receiver| {
        Some((receiver.recv().await?, receiver))
    })
}

fn over() -> CallError {
    Status::unavailable("the host has ended the call").into()
}
