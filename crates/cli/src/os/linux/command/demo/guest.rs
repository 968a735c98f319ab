//! The second partition: a process with an endpoint of its own, told what to do line by line.
//!
//! Orders come as JSON on standard input, answers go as JSON to standard output, one a line. The
//! process knows nothing of the broker but the endpoint in its environment, as in a container.

use std::collections::HashMap;
use std::io::{self, BufRead, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock::{ConnectOptions, Endpoint, HvListener, HvStream};
use hvsock_address::{ServiceRef, VmId};
use serde::{Deserialize, Serialize};

use super::services;
use crate::os::linux::measure::{self, Effort, Figures};
use crate::os::linux::output;

/// The second partition of `hvsock demo`.
#[derive(Debug, Args)]
pub struct Guest {}

/// What the guest is told to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    /// Connect to the parent, send a text, end the sending half, and read the answer to its end.
    Talk { service: ServiceRef, text: String },
    /// Connect, and expect a refusal.
    Try { service: ServiceRef },
    /// Connect and keep the connection under a name.
    Hold {
        name: String,
        service: ServiceRef,
        connected_suspend: bool,
    },
    /// Send a line over a kept connection and wait this long for it to come back.
    Ping { name: String, patience_ms: u64 },
    /// Listen for connections from the parent, and echo what comes over them.
    Serve { service: ServiceRef },
    /// Run the agent of the integration services from now on.
    Agent,
    /// Wait this long for what comes over a kept connection.
    Hear { name: String, patience_ms: u64 },
    /// Measure connections to the parent against a Unix socket.
    Measure {
        service: ServiceRef,
        unix: PathBuf,
        turns: usize,
        time_ms: u64,
    },
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// Done; with what was read.
    Heard(String),
    /// Nothing came in time.
    Silence,
    /// Refused or cut, after so long.
    Failed {
        why: String,
        errno: Option<i32>,
        after_ms: u64,
    },
    /// The figures.
    Figures(Box<Figures>),
}

const LINE: &[u8] = b"are you there?\n";

impl Guest {
    pub fn run(self) -> Result<()> {
        let mut kept = HashMap::new();
        for line in io::stdin().lock().lines() {
            let order = serde_json::from_str(&line?).context("not an order")?;
            let start = Instant::now();
            let answer = obey(order, &mut kept).unwrap_or_else(|error| failed(&error, start));
            output::json_line(&answer)?;
        }
        Ok(())
    }
}

fn obey(order: Order, kept: &mut HashMap<String, HvStream>) -> io::Result<Answer> {
    let unknown = || io::Error::from(io::ErrorKind::NotFound);
    match order {
        Order::Talk { service, text } => {
            let mut stream = HvStream::connect((VmId::PARENT, service))?;
            stream.write_all(text.as_bytes())?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(Answer::Heard(answer))
        }
        Order::Try { service } => {
            HvStream::connect((VmId::PARENT, service))?;
            Ok(Answer::Heard(String::new()))
        }
        Order::Hold {
            name,
            service,
            connected_suspend,
        } => {
            let mut stream = ConnectOptions::new()
                .connected_suspend(connected_suspend)
                .connect((VmId::PARENT, service))?;
            stream.write_all(&[measure::ECHO])?;
            kept.insert(name, stream);
            Ok(Answer::Heard(String::new()))
        }
        Order::Ping { name, patience_ms } => {
            let stream = kept.get_mut(&name).ok_or_else(unknown)?;
            stream.write_all(LINE)?;
            hear(stream, patience_ms)
        }
        Order::Hear { name, patience_ms } => {
            hear(kept.get_mut(&name).ok_or_else(unknown)?, patience_ms)
        }
        Order::Serve { service } => {
            measure::serve_ours(HvListener::bind((VmId::PARENT, service))?)?;
            Ok(Answer::Heard(String::new()))
        }
        Order::Agent => {
            services::run_agent()?;
            Ok(Answer::Heard(String::new()))
        }
        Order::Measure {
            service,
            unix,
            turns,
            time_ms,
        } => {
            let effort = Effort {
                turns,
                time: Duration::from_millis(time_ms),
            };
            // Looked up once, as a program does that connects often.
            let service = match service {
                ServiceRef::Name(name) => Endpoint::from_env().service_id(&name)?,
                ServiceRef::Id(id) => id,
            };
            let figures = measure::compare(
                || HvStream::connect((VmId::PARENT, service)),
                || UnixStream::connect(&unix),
                effort,
                |_| {},
            )?;
            Ok(Answer::Figures(Box::new(figures)))
        }
    }
}

fn hear(stream: &mut HvStream, patience_ms: u64) -> io::Result<Answer> {
    stream.set_read_timeout(Some(Duration::from_millis(patience_ms)))?;
    let mut heard = [0; LINE.len()];
    match stream.read_exact(&mut heard) {
        Ok(()) => Ok(Answer::Heard(
            String::from_utf8_lossy(&heard).trim_end().to_owned(),
        )),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(Answer::Silence),
        Err(error) => Err(error),
    }
}

/// What a program sees, in the words of the refusal and as an errno.
fn failed(error: &io::Error, start: Instant) -> Answer {
    let kinds = [
        (io::ErrorKind::ConnectionReset, rustix::io::Errno::CONNRESET),
        (io::ErrorKind::BrokenPipe, rustix::io::Errno::PIPE),
    ];
    let of_kind = kinds.into_iter().find(|(kind, _)| *kind == error.kind());
    Answer::Failed {
        after_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        why: error.to_string(),
        errno: match (of_kind, hvsock::refusal_of(error)) {
            (Some((_, errno)), _) => Some(errno.raw_os_error()),
            (None, Some(refusal)) => Some(refusal.errno()),
            (None, None) => error.raw_os_error(),
        },
    }
}
