//! Measures connections of a pair in an arena beside connections with memory of their own, by hand:
//! `cargo run --release -p hvsock-ring --example latency`. Each figure is the median of many short turns,
//! which alternate between both.

use std::error::Error;
use std::io::{Read, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use hvsock_ring::{
    ArenaClient, ArenaLimits, ArenaParts, ArenaServer, RingEnd, RingSize, pair as plain_pair,
};

type Ends = (RingEnd, RingEnd);

fn main() -> Result<(), Box<dyn Error>> {
    let (client, server) = arena()?;
    let one_thread = medians(41, 1, |_| {
        time(2000, || {
            let first = client.connect().expect("a slot is free");
            let second = server.accept().expect("no violation");
            first.end.shutdown_write();
            drop((first, second));
        })
    });
    println!(
        "open, accept and close, one thread   {:>8.0} ns",
        one_thread[0]
    );
    let two_threads = medians(11, 1, |_| across_threads(&client, &server, 20_000));
    println!(
        "the same, two threads                {:>8.0} ns",
        two_threads[0]
    );

    for (name, spin, count) in [
        ("round trip, spinning", Duration::from_millis(1), 2000),
        ("round trip, parked", Duration::ZERO, 200),
    ] {
        let turns = medians(61, 2, |which| {
            let ends = match which {
                0 => plain_pair(RingSize::DEFAULT).expect("a pair"),
                _ => connect(&client, &server),
            };
            round_trips(ends, spin, count)
        });
        let (plain, arena) = (turns[0], turns[1]);
        println!("{name:<24} plain {plain:>8.0} ns, arena {arena:>8.0} ns");
    }
    Ok(())
}

fn arena() -> Result<(ArenaClient, ArenaServer), Box<dyn Error>> {
    let limits = ArenaLimits {
        slots: 64,
        ring: RingSize::DEFAULT,
    };
    let parts = ArenaParts::new(limits, 64, 64)?;
    let tell = || Arc::new(|| {});
    let client = ArenaClient::open(&parts.memory, &parts.grant, parts.client, tell())?;
    let server = ArenaServer::open(&parts.memory, &parts.grant, parts.server, tell())?;
    Ok((client, server))
}

fn connect(client: &ArenaClient, server: &ArenaServer) -> Ends {
    let opened = client.connect().expect("a slot is free");
    let accepted = server.accept().expect("no violation");
    (opened.end, accepted.expect("it was opened").end)
}

/// The time of each call in nanoseconds.
fn time(count: u32, mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..count).for_each(|_| call());
    start.elapsed().as_nanos() as f64 / f64::from(count)
}

/// The medians of `turns` turns of each of `kinds` kinds.
fn medians(turns: usize, kinds: usize, mut turn: impl FnMut(usize) -> f64) -> Vec<f64> {
    let mut times = vec![Vec::new(); kinds];
    for _ in 0..turns {
        for (kind, times) in times.iter_mut().enumerate() {
            times.push(turn(kind));
        }
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    times.into_iter().map(median).collect()
}

/// A client that opens and closes, and a server that accepts and closes.
fn across_threads(client: &ArenaClient, server: &ArenaServer, count: u32) -> f64 {
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..count {
                while !matches!(server.accept(), Ok(Some(_))) {
                    std::hint::spin_loop();
                }
            }
        });
        time(count, || {
            loop {
                match client.connect() {
                    Ok(opened) => {
                        opened.end.shutdown_write();
                        break;
                    }
                    Err(_) => std::hint::spin_loop(),
                }
            }
        })
    })
}

fn round_trips((first, second): Ends, spin: Duration, count: u32) -> f64 {
    first.set_spin(spin);
    second.set_spin(spin);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut byte = [0];
            while let Ok(1) = (&second).read(&mut byte) {
                (&second).write_all(&byte).expect("the peer reads");
            }
        });
        let time = time(count, || {
            let mut byte = [1];
            (&first).write_all(&byte).expect("the peer reads");
            (&first).read_exact(&mut byte).expect("the peer answers");
        });
        first.shutdown_write();
        time
    })
}
