//! The connect bench: connects of processes to a service in another process, over hvsock and over Unix
//! sockets.
//!
//! [`server`] accepts, in a process of its own. [`client`] connects: one process with threads, or many
//! processes ([`Load`]). [`measure`] takes both subjects in alternating turns, [`idle`] holds many idle
//! connections and lists, closes and suspends some, and [`report`] has the ratios and the goals.

pub mod client;
pub mod idle;
pub mod measure;
pub mod report;
pub mod server;

use std::path::PathBuf;
use std::time::Duration;

use hvsock::ServiceId;
use serde::Serialize;

/// What a client connects over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// A Unix socket.
    Unix,
    /// hvsock, by the service's GUID.
    Hvsock,
    /// hvsock, by the service's name, which the broker resolves in the connect.
    HvsockByName,
}

impl Subject {
    /// The two subjects that every load measures.
    pub const BOTH: [Self; 2] = [Self::Unix, Self::Hvsock];

    fn word(self) -> &'static str {
        match self {
            Self::Unix => "unix",
            Self::Hvsock => "hvsock",
            Self::HvsockByName => "name",
        }
    }

    fn parse(word: &str) -> anyhow::Result<Self> {
        let all = [Self::Unix, Self::Hvsock, Self::HvsockByName];
        let found = all.into_iter().find(|subject| subject.word() == word);
        found.ok_or_else(|| anyhow::anyhow!("no subject {word:?}"))
    }
}

/// The number of clients that connect at once, and what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Number of clients.
    pub clients: usize,
    /// Whether each is a process of its own, or a thread of one process.
    pub processes: bool,
}

impl Load {
    /// One client.
    pub const ONE: Self = Self::threads(1);
    /// All measured loads.
    pub const ALL: [Self; 6] = [
        Self::ONE,
        Self::threads(2),
        Self::threads(8),
        Self::threads(64),
        Self::processes(8),
        Self::processes(64),
    ];

    const fn threads(clients: usize) -> Self {
        Self {
            clients,
            processes: false,
        }
    }

    const fn processes(clients: usize) -> Self {
        Self {
            clients,
            processes: true,
        }
    }

    /// The name in tables.
    pub fn name(self) -> String {
        match (self.clients, self.processes) {
            (1, _) => "1 client".to_owned(),
            (clients, false) => format!("{clients} threads"),
            (clients, true) => format!("{clients} processes"),
        }
    }

    /// Connects of each client in one turn: about as many of all clients together at every load.
    fn connects(self) -> usize {
        match self.clients {
            1 => 200,
            clients => (800 / clients).max(12),
        }
    }

    /// Pause between two connects of a client. One client's connects exclude the work that a connect and
    /// a close leave behind; the rate includes it. Several clients connect back to back.
    fn pause(self) -> Duration {
        match self.clients {
            1 => Duration::from_micros(300),
            _ => Duration::ZERO,
        }
    }
}

/// Where the server listens.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// The endpoint of the broker.
    pub endpoint: PathBuf,
    /// Prefix of the paths of the Unix sockets.
    pub unix: PathBuf,
    /// The service that tells each client when it was accepted. [`NAME`] is its name.
    pub timed: ServiceId,
    /// The service that only accepts.
    pub silent: ServiceId,
}

/// The name of the timed service.
pub const NAME: &str = "Connect Benchmark";

impl Addresses {
    /// The Unix socket that tells each client when it was accepted.
    fn unix_timed(&self) -> PathBuf {
        self.unix.with_extension("timed")
    }

    /// The Unix socket that only accepts.
    fn unix_silent(&self) -> PathBuf {
        self.unix.with_extension("silent")
    }

    /// As arguments of a role.
    fn words(&self) -> [String; 4] {
        [
            self.endpoint.display().to_string(),
            self.unix.display().to_string(),
            self.timed.to_string(),
            self.silent.to_string(),
        ]
    }

    /// The addresses in the arguments of a role.
    pub fn from_words(words: &[&str]) -> anyhow::Result<Self> {
        let [endpoint, unix, timed, silent] = words else {
            anyhow::bail!("expected an endpoint, a path and two services");
        };
        Ok(Self {
            endpoint: endpoint.into(),
            unix: unix.into(),
            timed: timed.parse()?,
            silent: silent.parse()?,
        })
    }
}

/// The time of `CLOCK_MONOTONIC` in nanoseconds, which all processes share.
fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
