//! Measures the rate of connects, and many concurrent connections.

use std::time::{Duration, Instant};

use anyhow::Context;
use hvsock_testkit::guest::Guest;

use super::GuestLaneKind;
use super::lane::{Lane, connect};
use crate::stream::MESSAGE;

/// Round trips of each connection that are measured together.
const ROUNDS: u64 = 5;

/// Connections per second that a guest makes and closes in sequence.
pub fn rate(guest: &Guest, over: GuestLaneKind, time: Duration) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < time {
        let made = connect(guest, over.port());
        let made = made.with_context(|| format!("connection {count} in sequence"))?;
        let closed = made.close(Duration::from_secs(2));
        closed.with_context(|| format!("the close of connection {count} in sequence"))?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

/// The result of many concurrent connections.
#[derive(Clone, Copy, Debug)]
pub struct Concurrent {
    /// Seconds until all were connected, for the guest.
    pub connect: f64,
    /// Seconds until the host program has answered on all, from the start.
    pub answered: f64,
    /// Round trips per second over all connections, after that.
    pub messages: f64,
}

/// Opens `count` connections and makes some rounds: sends a message on each, then receives all echoes. Closes
/// them at the end.
///
/// A guest's connection is made before the host program accepts it, so the first round includes that and
/// the making of the threads that serve the connections. It is measured by itself.
pub fn many(guest: &Guest, over: GuestLaneKind, count: usize) -> anyhow::Result<Concurrent> {
    let start = Instant::now();
    let mut lanes = Vec::with_capacity(count);
    for made in 0..count {
        let lane = Lane::connect(guest, over);
        lanes.push(lane.with_context(|| format!("connection {made} of {count}"))?);
    }
    let connect = start.elapsed().as_secs_f64();
    for lane in &mut lanes {
        lane.request_echoes(1 + ROUNDS)?;
    }
    exchange(&mut lanes, 0).context("the first round")?;
    let answered = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for round in 1..=ROUNDS {
        exchange(&mut lanes, round).with_context(|| format!("round {round}"))?;
    }
    let seconds = start.elapsed().as_secs_f64();
    for lane in &mut lanes {
        lane.receive_reply(0)?;
    }
    drop(lanes);
    let until = Instant::now() + Duration::from_secs(10);
    while guest.connections() > 1 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(Concurrent {
        connect,
        answered,
        messages: (ROUNDS * count as u64) as f64 / seconds,
    })
}

/// Sends a message on each connection, then receives all echoes.
fn exchange(lanes: &mut [Lane], round: u64) -> anyhow::Result<()> {
    let mut message = [0x5a; MESSAGE];
    for lane in &mut *lanes {
        lane.send_message(&mut message, round)?;
    }
    for lane in lanes {
        lane.receive_echo(&mut message, round)?;
    }
    Ok(())
}
