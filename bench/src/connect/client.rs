//! A connecting process, with one or more threads.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use hvsock::{HvStream, VmId};

use super::{Addresses, NAME, Subject, now};
use crate::worker::{self, Worker};

/// First argument that makes a bench's program run as a connecting process.
pub const ROLE: &str = "role-connect-client";

/// A connecting process. Dropping it ends the process.
#[derive(Debug)]
pub struct Client(Worker);

impl Client {
    /// Starts it for the server at these addresses. It has not connected yet.
    pub fn start(addresses: &Addresses) -> anyhow::Result<Self> {
        let words = addresses.words();
        let mut arguments = vec![ROLE];
        arguments.extend(words.iter().map(String::as_str));
        Worker::start(&arguments).map(Self)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Starts `connects` timed connects in each of `threads` threads. [`times`](Self::times) waits for them.
    pub fn start_timed(
        &mut self,
        over: Subject,
        threads: usize,
        connects: usize,
        pause: Duration,
    ) -> anyhow::Result<()> {
        let (over, pause) = (over.word(), pause.as_micros());
        self.0
            .send(&format!("timed {over} {threads} {connects} {pause}"))
    }

    /// The microseconds of each timed connect, from its start until both ends had the connection.
    pub fn times(&mut self) -> anyhow::Result<Vec<f64>> {
        let reply = self.0.receive()?;
        let times = reply.split_whitespace();
        let times = times.map(|time| Ok(time.parse::<u64>()? as f64 / 1e3));
        times.collect()
    }

    /// Starts to connect and close back to back in each of `threads` threads, for `time`.
    /// [`made`](Self::made) waits for its end.
    pub fn start_rate(
        &mut self,
        over: Subject,
        threads: usize,
        time: Duration,
    ) -> anyhow::Result<()> {
        let (over, time) = (over.word(), time.as_millis());
        self.0.send(&format!("rate {over} {threads} {time}"))
    }

    /// How many connections were made, and the last error if there was one: as a rule a full backlog.
    pub fn made(&mut self) -> anyhow::Result<(u64, String)> {
        let reply = self.0.receive()?;
        let (made, error) = reply.split_once(' ').unwrap_or((&reply, ""));
        Ok((made.parse()?, error.to_owned()))
    }
}

/// Body of a connecting process.
pub fn serve(arguments: &[&str]) -> anyhow::Result<()> {
    let addresses = Addresses::from_words(arguments)?;
    worker::serve(|words| match words {
        ["timed", over, threads, connects, pause] => {
            let over = Subject::parse(over)?;
            let connects = connects.parse()?;
            let pause = Duration::from_micros(pause.parse()?);
            let times = in_threads(threads.parse()?, || {
                timed(&addresses, over, connects, pause)
            })?;
            let times = times.iter().flatten().map(u64::to_string);
            Ok(times.collect::<Vec<_>>().join(" "))
        }
        ["rate", over, threads, time] => {
            let over = Subject::parse(over)?;
            let time = Duration::from_millis(time.parse()?);
            let made = in_threads(threads.parse()?, || rate(&addresses, over, time))?;
            let all: u64 = made.iter().map(|(made, _)| made).sum();
            let error = made.into_iter().find_map(|(_, error)| error);
            let error = error.map_or(String::new(), |error| error.to_string());
            Ok(format!("{all} {}", error.replace('\n', " ")))
        }
        other => anyhow::bail!("unknown request {other:?}"),
    })
}

/// Runs `work` in that many threads at once; one thread needs no other.
fn in_threads<T: Send>(
    threads: usize,
    work: impl Fn() -> anyhow::Result<T> + Sync,
) -> anyhow::Result<Vec<T>> {
    if threads == 1 {
        return Ok(vec![work()?]);
    }
    let start = Barrier::new(threads);
    thread::scope(|scope| {
        let run = || {
            scope.spawn(|| {
                start.wait();
                work()
            })
        };
        let running: Vec<_> = (0..threads).map(|_| run()).collect();
        let ended = running.into_iter().map(thread::ScopedJoinHandle::join);
        ended
            .map(|result| result.map_err(|_| anyhow::anyhow!("a thread of a client panicked"))?)
            .collect()
    })
}

fn timed(
    addresses: &Addresses,
    over: Subject,
    connects: usize,
    pause: Duration,
) -> anyhow::Result<Vec<u64>> {
    let mut times = Vec::with_capacity(connects);
    for _ in 0..connects {
        times.push(match over {
            Subject::Unix => timed_once(|| UnixStream::connect(addresses.unix_timed())),
            Subject::Hvsock => timed_once(|| {
                HvStream::options()
                    .endpoint(addresses.endpoint.clone())
                    .connect((VmId::LOOPBACK, addresses.timed))
            }),
            Subject::HvsockByName => timed_once(|| {
                HvStream::options()
                    .endpoint(addresses.endpoint.clone())
                    .connect((VmId::LOOPBACK, NAME))
            }),
        }?);
        // It spins: a sleep would add the wakeup of a processor to the next connect.
        let resume = Instant::now() + pause;
        while Instant::now() < resume {
            std::hint::spin_loop();
        }
    }
    Ok(times)
}

/// Nanoseconds until both ends have the connection.
fn timed_once<T: Read>(connect: impl Fn() -> std::io::Result<T>) -> anyhow::Result<u64> {
    let start = now();
    let mut stream = connect().context("cannot connect")?;
    let connected = now();
    let mut accepted = [0; 8];
    stream
        .read_exact(&mut accepted)
        .context("cannot read when the connection was accepted")?;
    let both = connected.max(u64::from_le_bytes(accepted));
    Ok(both.saturating_sub(start))
}

/// What a refused client waits. A Unix socket's client sleeps in the kernel instead.
const RETRY: Duration = Duration::from_micros(50);

type Made = (u64, Option<std::io::Error>);

fn rate(addresses: &Addresses, over: Subject, time: Duration) -> anyhow::Result<Made> {
    Ok(match over {
        Subject::Unix => rate_of(time, || UnixStream::connect(addresses.unix_silent())),
        _ => rate_of(time, || {
            HvStream::options()
                .endpoint(addresses.endpoint.clone())
                .connect((VmId::LOOPBACK, addresses.silent))
        }),
    })
}

/// How many connections were made, and the last error.
fn rate_of<T>(time: Duration, connect: impl Fn() -> std::io::Result<T>) -> Made {
    let start = Instant::now();
    let (mut made, mut last) = (0, None);
    while start.elapsed() < time {
        match connect() {
            Ok(stream) => {
                drop(stream);
                made += 1;
            }
            // The backlog may be full: the accepting end limits the rate.
            Err(error) => {
                last = Some(error);
                thread::sleep(RETRY);
            }
        }
    }
    (made, last)
}
