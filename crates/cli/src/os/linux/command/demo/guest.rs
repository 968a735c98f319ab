//! The process in the second partition, which has an endpoint of its own and runs commands.
//!
//! It reads commands as JSON lines from standard input and writes one reply to each as a JSON line
//! to standard output. It uses only the endpoint in its environment, as in a container.

use std::collections::HashMap;
use std::io::{self, BufRead, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hvsock::{ConnectOptions, Endpoint, HvListener, HvStream};
use hvsock_address::{ServiceRef, VmId};
use serde::{Deserialize, Serialize};

use super::services;
use crate::os::linux::measure::{self, Effort, Figures};
use crate::os::linux::output;

/// The internal command of this process: `hvsock demo-guest`.
pub const GUEST_COMMAND: &str = "demo-guest";

/// A command for the guest.
#[derive(Debug, Serialize, Deserialize)]
pub enum Command {
    /// Connect to the parent, send a text, shut down the sending half, and read the answer.
    Exchange { service: ServiceRef, text: String },
    /// Connect, and expect a refusal.
    TryConnect { service: ServiceRef },
    /// Connect, and keep the connection under a name.
    Open {
        name: String,
        service: ServiceRef,
        connected_suspend: bool,
    },
    /// Send a line over an open connection, and wait for its echo.
    Ping { name: String, timeout_ms: u64 },
    /// Listen for connections from the parent, and echo their data.
    Serve { service: ServiceRef },
    /// Start the agent of the integration services.
    StartAgent,
    /// Wait for a line from an open connection.
    Receive { name: String, timeout_ms: u64 },
    /// Measure connections to the parent against a Unix socket.
    Measure {
        service: ServiceRef,
        unix: PathBuf,
        turns: usize,
        time_ms: u64,
    },
}

/// The result of a command.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The command succeeded, with the text that was received.
    Received(String),
    /// Nothing arrived in time.
    TimedOut,
    /// A connect was refused or a connection was reset, after this time.
    Failed {
        why: String,
        errno: Option<i32>,
        after_ms: u64,
    },
    /// The measured figures.
    Figures(Box<Figures>),
}

const LINE: &[u8] = b"are you there?\n";

/// Runs commands until the end of standard input.
pub fn run() -> Result<()> {
    let mut open = HashMap::new();
    for line in io::stdin().lock().lines() {
        let command = serde_json::from_str(&line?).context("invalid command")?;
        let start = Instant::now();
        let reply = handle(command, &mut open).unwrap_or_else(|error| failed(&error, start));
        output::json_line(&reply)?;
    }
    Ok(())
}

fn handle(command: Command, open: &mut HashMap<String, HvStream>) -> io::Result<Reply> {
    let unknown = || io::Error::from(io::ErrorKind::NotFound);
    match command {
        Command::Exchange { service, text } => {
            let mut stream = HvStream::connect((VmId::PARENT, service))?;
            stream.write_all(text.as_bytes())?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(Reply::Received(answer))
        }
        Command::TryConnect { service } => {
            HvStream::connect((VmId::PARENT, service))?;
            Ok(Reply::Received(String::new()))
        }
        Command::Open {
            name,
            service,
            connected_suspend,
        } => {
            let mut stream = ConnectOptions::new()
                .connected_suspend(connected_suspend)
                .connect((VmId::PARENT, service))?;
            stream.write_all(&[measure::ECHO])?;
            open.insert(name, stream);
            Ok(Reply::Received(String::new()))
        }
        Command::Ping { name, timeout_ms } => {
            let stream = open.get_mut(&name).ok_or_else(unknown)?;
            stream.write_all(LINE)?;
            receive(stream, timeout_ms)
        }
        Command::Receive { name, timeout_ms } => {
            receive(open.get_mut(&name).ok_or_else(unknown)?, timeout_ms)
        }
        Command::Serve { service } => {
            measure::serve_hvsock(HvListener::bind((VmId::PARENT, service))?)?;
            Ok(Reply::Received(String::new()))
        }
        Command::StartAgent => {
            services::run_agent()?;
            Ok(Reply::Received(String::new()))
        }
        Command::Measure {
            service,
            unix,
            turns,
            time_ms,
        } => {
            let effort = Effort {
                turns,
                time: Duration::from_millis(time_ms),
            };
            // One lookup, as in a program that connects often.
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
            Ok(Reply::Figures(Box::new(figures)))
        }
    }
}

fn receive(stream: &mut HvStream, timeout_ms: u64) -> io::Result<Reply> {
    stream.set_read_timeout(Some(Duration::from_millis(timeout_ms)))?;
    let mut received = [0; LINE.len()];
    match stream.read_exact(&mut received) {
        Ok(()) => Ok(Reply::Received(
            String::from_utf8_lossy(&received).trim_end().to_owned(),
        )),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(Reply::TimedOut),
        Err(error) => Err(error),
    }
}

/// An error with the text of the refusal and the errno that a program sees.
fn failed(error: &io::Error, start: Instant) -> Reply {
    let kinds = [
        (io::ErrorKind::ConnectionReset, rustix::io::Errno::CONNRESET),
        (io::ErrorKind::BrokenPipe, rustix::io::Errno::PIPE),
    ];
    let of_kind = kinds.into_iter().find(|(kind, _)| *kind == error.kind());
    Reply::Failed {
        after_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        why: error.to_string(),
        errno: match (of_kind, hvsock::refusal_of(error)) {
            (Some((_, errno)), _) => Some(errno.raw_os_error()),
            (None, Some(refusal)) => Some(refusal.errno()),
            (None, None) => error.raw_os_error(),
        },
    }
}
