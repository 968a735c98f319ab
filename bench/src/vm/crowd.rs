//! Many connections: how many are made in a second, and what a thousand do at once.

use std::time::{Duration, Instant};

use anyhow::Context;
use hvsock_testkit::guest::Guest;

use super::Over;
use super::lane::{Lane, connect};
use crate::stream::MESSAGE;

/// Messages that each of many connections sends and gets back.
const ROUNDS: u64 = 5;

/// How many connections a guest makes and closes in a second, one after the other.
pub fn rate(guest: &Guest, over: Over, time: Duration) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < time {
        connect(guest, over.port())?.close(Duration::from_secs(2))?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

/// What many connections at once did.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// Seconds until all stood.
    pub connect: f64,
    /// Messages there and back in a second, over all of them.
    pub messages: f64,
}

/// Makes `count` connections, sends a message on each before it waits for the first to come back,
/// some times, and closes them.
pub fn many(guest: &Guest, over: Over, count: usize) -> anyhow::Result<Crowd> {
    let start = Instant::now();
    let mut lanes = Vec::with_capacity(count);
    for made in 0..count {
        let lane = Lane::connect(guest, over);
        lanes.push(lane.with_context(|| format!("connection {made} of {count}"))?);
    }
    let connect = start.elapsed().as_secs_f64();
    let mut message = [0x5a; MESSAGE];
    for lane in &mut lanes {
        lane.expect_echoes(ROUNDS)?;
    }
    let start = Instant::now();
    for round in 0..ROUNDS {
        for lane in &mut lanes {
            lane.say(&mut message, round)?;
        }
        for lane in &mut lanes {
            lane.hear(&mut message, round)?;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    for lane in &mut lanes {
        lane.answer(0)?;
    }
    drop(lanes);
    let until = Instant::now() + Duration::from_secs(10);
    while guest.connections() > 1 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(Crowd {
        connect,
        messages: (ROUNDS * count as u64) as f64 / seconds,
    })
}
