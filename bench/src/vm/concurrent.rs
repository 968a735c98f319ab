//! Measures the rate of connects, and many concurrent connections.

use std::time::{Duration, Instant};

use anyhow::Context;
use hvsock_testkit::guest::Guest;

use super::GuestLaneKind;
use super::lane::{Lane, connect};
use crate::stream::MESSAGE;

/// Round trips of each connection.
const ROUNDS: u64 = 5;

/// Connections per second that a guest makes and closes in sequence.
pub fn rate(guest: &Guest, over: GuestLaneKind, time: Duration) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < time {
        connect(guest, over.port())?.close(Duration::from_secs(2))?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

/// The result of many concurrent connections.
#[derive(Clone, Copy, Debug)]
pub struct Concurrent {
    /// Seconds until all were connected.
    pub connect: f64,
    /// Round trips per second over all connections.
    pub messages: f64,
}

/// Opens `count` connections and makes some rounds: sends a message on each, then receives all echoes. Closes
/// them at the end.
pub fn many(guest: &Guest, over: GuestLaneKind, count: usize) -> anyhow::Result<Concurrent> {
    let start = Instant::now();
    let mut lanes = Vec::with_capacity(count);
    for made in 0..count {
        let lane = Lane::connect(guest, over);
        lanes.push(lane.with_context(|| format!("connection {made} of {count}"))?);
    }
    let connect = start.elapsed().as_secs_f64();
    let mut message = [0x5a; MESSAGE];
    for lane in &mut lanes {
        lane.request_echoes(ROUNDS)?;
    }
    let start = Instant::now();
    for round in 0..ROUNDS {
        for lane in &mut lanes {
            lane.send_message(&mut message, round)?;
        }
        for lane in &mut lanes {
            lane.receive_echo(&mut message, round)?;
        }
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
        messages: (ROUNDS * count as u64) as f64 / seconds,
    })
}
