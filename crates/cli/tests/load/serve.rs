//! The program `hvsock-load`, a process with streams.
//!
//! It prints `ready` at first. Then it answers each line of its standard input by a line of JSON: `mark` by the
//! longest standstill of each stream since the last `mark` in microseconds, `stop` by the totals of all streams, with
//! which it ends.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::thread;

use hvsock::{Endpoint, HvListener, HvStream};
use serde_json::json;

use crate::load::{End, LIMIT, Pace, Terms, Totals, Way};

/// Connects. The first bytes are the terms.
fn connect(endpoint: &Endpoint, address: &str, way: Way, terms: Terms) -> HvStream {
    let options = HvStream::options().endpoint(endpoint.clone());
    let options = match way {
        Way::Ring => options.own_memory(true),
        Way::Relay => options.shared_memory(false),
        Way::Raw => options.raw_fd(true),
        Way::Default => options,
    };
    let stream = options.timeout(LIMIT).connect(address).expect("connected");
    (&stream).write_all(&header(terms)).expect("written");
    stream
}

fn listen(endpoint: &Endpoint, address: &str, way: Way) -> HvListener {
    let options = HvListener::options().endpoint(endpoint.clone());
    let options = match way {
        Way::Ring => options.own_memory(true),
        Way::Relay => options.shared_memory(false),
        Way::Raw => options.raw_fd(true),
        Way::Default => options,
    };
    options.listen(address).expect("listening")
}

/// The terms as the first bytes of a stream.
fn header(terms: Terms) -> [u8; 10] {
    let mut header = [0; 10];
    header[..8].copy_from_slice(&terms.seed.to_le_bytes());
    header[8] = u8::from(terms.half);
    header[9] = u8::from(terms.pace == Pace::Full);
    header
}

/// The terms of a connection that was accepted.
fn terms(mut stream: impl Read) -> Terms {
    let mut header = [0; 10];
    stream.read_exact(&mut header).expect("a header");
    let [seed @ .., half, full] = header;
    Terms {
        seed: u64::from_le_bytes(seed),
        half: half == 1,
        pace: match full {
            0 => Pace::Steady,
            _ => Pace::Full,
        },
    }
}

fn limited(stream: HvStream) -> HvStream {
    stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
    stream.set_write_timeout(Some(LIMIT)).expect("a timeout");
    stream
}

fn way_of(name: &str) -> Way {
    let found = Way::ALL.iter().find(|(_, it)| *it == name);
    found.expect("a way").0
}

/// An end of a process's stream.
fn end_of(stream: HvStream, terms: Terms, connects: bool) -> End {
    // Each broker on the way has an id of its own for the connection.
    End::start(terms.seed, limited(stream), terms, connects)
}

/// The program: `listen ADDRESS WAY` or `connect ADDRESS WAY COUNT HALF`, of which the last `HALF` streams are half-closed.
/// The broker is the one of the environment.
pub fn run() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let endpoint = Endpoint::from_env();
    let ends: Arc<Mutex<Vec<End>>> = Arc::default();
    match arguments[..] {
        ["listen", address, way] => {
            let listener = listen(&endpoint, address, way_of(way));
            let ends = Arc::clone(&ends);
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let stream = stream.expect("accepted");
                    let terms = terms(&stream);
                    let end = end_of(stream, terms, false);
                    ends.lock().expect("no panic").push(end);
                }
            });
        }
        ["connect", address, way, count, half] => {
            let [count, half] =
                [count, half].map(|number| number.parse::<u64>().expect("a number"));
            let mut ends = ends.lock().expect("no panic");
            for number in 0..count {
                let terms = Terms {
                    pace: Pace::of(number),
                    seed: u64::from(std::process::id()) << 32 | number,
                    half: number >= count - half,
                };
                let stream = connect(&endpoint, address, way_of(way), terms);
                ends.push(end_of(stream, terms, true));
            }
        }
        _ => panic!("{arguments:?}"),
    }
    println!("ready");
    for line in std::io::stdin().lines() {
        let mut ends = ends.lock().expect("no panic");
        match line.expect("a line").as_str() {
            "mark" => {
                let longest = ends.iter().filter_map(End::longest_standstill);
                println!("{}", json!(longest.collect::<Vec<_>>()));
            }
            _ => {
                ends.iter().for_each(End::stop);
                let totals = ends.drain(..).map(|end| {
                    let Totals {
                        id,
                        sent,
                        received,
                        error,
                    } = end.totals();
                    json!([id, sent, received, error])
                });
                println!("{}", json!(totals.collect::<Vec<_>>()));
                return;
            }
        }
    }
}
