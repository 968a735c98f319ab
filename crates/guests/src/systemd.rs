//! The machine's own systemd in a guest: what a package does, what its units say, and what happens at a restart
//! can be tried without a disk image, and without changing the machine.
//!
//! The guest sees the machine's files (User-mode Linux's hostfs) below an overlay in its memory, which takes all
//! changes. systemd is the first process of namespaces of its own, as in a container, with the machine's units
//! installed but nothing started: only the journal.

use std::path::Path;
use std::time::Duration;

use crate::error::{Error, Missing};
use crate::guest::{Guest, Output, Spawned};

const START: &str = include_str!("systemd.sh");

/// As `systemd.sh` starts it.
const PROGRAM: &str = "/lib/systemd/systemd";

/// About fifteen times what it takes on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running systemd. It ends with its guest.
#[derive(Debug)]
pub struct Systemd<'a> {
    guest: &'a Guest,
    /// Its process in the guest.
    pid: u32,
}

impl Guest {
    /// Starts the machine's systemd, in a guest of [`Config::systemd`](crate::Config::systemd).
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] with what it printed, if it does not start; as [`run`](Self::run).
    pub fn systemd(&self) -> Result<Systemd<'_>, Error> {
        self.push("/machine/start", START.as_bytes())?;
        let tries = 5 * START_LIMIT.as_secs();
        let start = self.run(&format!("sh /machine/start {tries}"), START_LIMIT)?;
        match start.text().parse() {
            Ok(pid) => Ok(Systemd { guest: self, pid }),
            Err(_) => Err(Error::Protocol(format!(
                "systemd does not start in the guest {}: {}{}",
                self.name(),
                start.text(),
                start.stderr_text()
            ))),
        }
    }
}

impl Systemd<'_> {
    /// Whether the machine has one.
    ///
    /// # Errors
    ///
    /// [`Missing`] if it is not installed.
    pub fn installed() -> Result<(), Missing> {
        match Path::new(PROGRAM).exists() {
            true => Ok(()),
            false => Err(Missing {
                what: format!("there is no {PROGRAM}"),
                advice: "install it with `apt-get install systemd`".into(),
            }),
        }
    }

    /// The guest that it runs in.
    pub fn guest(&self) -> &Guest {
        self.guest
    }

    /// Runs a shell command beside it to its end: with the files that it sees.
    ///
    /// # Errors
    ///
    /// As [`Guest::run`].
    pub fn run(&self, command: &str, limit: Duration) -> Result<Output, Error> {
        self.guest.run(&self.inside(command), limit)
    }

    /// Starts a shell command in the background, beside it.
    ///
    /// # Errors
    ///
    /// As [`Guest::spawn`].
    pub fn spawn(&self, command: &str) -> Result<Spawned<'_>, Error> {
        self.guest.spawn(&self.inside(command))
    }

    /// Writes a file that it sees; creates its parent folders.
    ///
    /// # Errors
    ///
    /// As [`Guest::push`].
    pub fn push(&self, path: &str, content: &[u8]) -> Result<(), Error> {
        let path = format!("/proc/{}/root/{}", self.pid, path.trim_start_matches('/'));
        self.guest.push(&path, content)
    }

    /// The command for the guest's own shell.
    fn inside(&self, command: &str) -> String {
        let quoted = command.replace('\'', r"'\''");
        format!("exec nsenter -t {} -m -p /bin/sh -c '{quoted}'", self.pid)
    }
}
