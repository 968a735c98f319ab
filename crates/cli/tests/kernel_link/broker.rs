//! The command's broker in the machine that plays the host.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::host::{Host, PROGRAM, Running};

/// How long an expected state may take on an emulated processor.
const LIMIT: Duration = Duration::from_secs(120);

/// Numbers the folders of brokers.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// A broker with a folder of its own, which ends with this value.
pub struct Broker<'a> {
    host: &'a Host,
    dir: String,
    running: Running<'a>,
}

impl<'a> Broker<'a> {
    pub fn start(host: &'a Host) -> Result<Self> {
        let dir = format!("/run/hv{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let running = host.spawn(&format!("hvsock --dir {dir} broker --name machine"))?;
        running.prints("hvsock broker ready")?;
        Ok(Self { host, dir, running })
    }

    /// Its folder.
    pub fn dir(&self) -> &str {
        &self.dir
    }

    /// The command line of `hvsock ARGUMENTS`.
    pub fn line(&self, arguments: &str) -> String {
        format!("hvsock --dir {} {arguments}", self.dir)
    }

    /// Runs commands one after another; each must succeed. Returns their stdout.
    pub fn ok(&self, commands: &[&str]) -> Result<String> {
        let lines: Vec<String> = commands.iter().map(|words| self.line(words)).collect();
        self.host.ok(&lines.join(" && "))
    }

    /// Runs a command that must fail. Returns what it prints.
    pub fn fails(&self, arguments: &str) -> Result<String> {
        self.host.fails(&self.line(arguments))
    }

    /// Runs a command that may fail. Returns what it prints.
    pub fn prints(&self, arguments: &str) -> Result<String> {
        let output = self.host.sh(&self.line(arguments))?;
        Ok(format!("{}\n{}", output.text(), output.stderr_text()))
    }

    /// Runs a command with `--json`.
    pub fn json(&self, arguments: &str) -> Result<Value> {
        let text = self.ok(&[&format!("{arguments} --json")])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Starts `hvsock listen ARGUMENTS`, and waits until it listens.
    pub fn listen(&self, arguments: &str) -> Result<Running<'a>> {
        let running = self
            .host
            .spawn(&self.line(&format!("listen {arguments}")))?;
        running.prints_any("listening")?;
        Ok(running)
    }

    /// Starts a program that listens with the library, and waits until it does.
    pub fn program(&self, service: &str) -> Result<Running<'a>> {
        let command = format!("{PROGRAM} service {} {service}", self.dir);
        let running = self.host.spawn(&command)?;
        running.prints_any("listening")?;
        Ok(running)
    }

    /// Waits until a condition holds.
    pub fn until<T>(&self, what: &str, mut seen: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(value) = seen()? {
                return Ok(value);
            }
            if Instant::now() > deadline {
                bail!("{what} does not hold; the broker's log: {}", self.log()?);
            }
        }
    }

    /// Its log so far.
    pub fn log(&self) -> Result<String> {
        self.running.output()
    }

    /// Its open descriptors and resident KiB.
    pub fn usage(&self) -> Result<(u64, u64)> {
        let command = format!(
            "pid=$(pidof hvsock | tr ' ' '\\n' | while read p; do \
             tr '\\0' ' ' </proc/$p/cmdline | grep -q -- '{} broker' && echo $p; done | head -1); \
             ls /proc/$pid/fd | wc -l; grep VmRSS /proc/$pid/status | tr -dc 0-9",
            self.dir
        );
        let text = self.host.ok(&command)?;
        let mut numbers = text.lines().filter_map(|line| line.trim().parse().ok());
        match (numbers.next(), numbers.next()) {
            (Some(descriptors), Some(memory)) => Ok((descriptors, memory)),
            _ => bail!("the broker's usage: {text}"),
        }
    }
}
