//! A broker in a process of its own, so that its memory and descriptors are its own.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use hvsock_broker::{Broker, BrokerConfig};
use hvsock_endpoint::{DirSource, Dirs};

/// The first argument by which a measurement's program becomes a broker.
pub const ROLE: &str = "role-broker";

/// A running broker process; it ends with this.
#[derive(Debug)]
pub struct BrokerProcess {
    child: Child,
    folder: tempfile::TempDir,
}

impl BrokerProcess {
    /// Starts this very program again as a broker.
    pub fn start() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("hvb").tempdir()?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg(ROLE)
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().context("the broker has no output")?;
        BufReader::new(output).read_line(&mut line)?;
        anyhow::ensure!(line == "ready\n", "the broker did not start: {line}");
        Ok(Self { child, folder })
    }

    /// The endpoint of the broker's own partition.
    pub fn endpoint(&self) -> PathBuf {
        self.folder.path().join("endpoint")
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its resident memory in bytes.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        Ok(kib.context("no VmRSS")?.trim().parse::<u64>()? * 1024)
    }

    /// How many descriptors it has open.
    pub fn open_descriptors(&self) -> anyhow::Result<u64> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))?;
        Ok(entries.count() as u64)
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        // The end of its input ends it.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// What the program does as a broker: serves `folder` until its input ends.
pub fn serve(folder: &Path) -> anyhow::Result<()> {
    let dirs = Dirs::resolve(DirSource::One(folder.to_owned()), |_| None)
        .map_err(|variable| anyhow::anyhow!("{variable} is not set"))?;
    let mut config = BrokerConfig::new(dirs);
    config.limits.connections_per_partition = config.limits.connections;
    let _broker = Broker::start(config)?;
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
