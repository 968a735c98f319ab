//! What the bench of copies needs: a broker with a container, an agent in it, and beside the agent
//! a sink that takes bytes as they come.

mod measure;
mod sink;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use hvsock::{Endpoint, ServiceId};
use hvsock_broker::{Broker, BrokerConfig};
use hvsock_endpoint::{DirSource, Dirs};
use hvsock_services::catalog::COPY;
use hvsock_services::guest;
use serde_json::json;

pub use measure::{Lane, Large, Small, large, small};

/// The first argument by which the program becomes a broker.
pub const BROKER: &str = "role-copy-broker";

/// The first argument by which the program becomes what is in the container.
pub const AGENT: &str = "role-copy-agent";

/// The container.
const BOX: &str = "box";

/// The port of the sink, beside those of the integration services.
const SINK: u32 = 18_299;

/// A broker and what is in its container; they end with this.
#[derive(Debug)]
pub struct Scene {
    // In this order: the agent goes first.
    _agent: Process,
    _broker: Process,
    folder: tempfile::TempDir,
}

#[derive(Debug)]
struct Process(Child);

impl Process {
    /// Starts this very program again in another role, and waits until it is ready.
    fn start(role: &str, folder: &Path) -> anyhow::Result<Self> {
        let child = Command::new(std::env::current_exe()?)
            .arg(role)
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut process = Self(child);
        let output = process.0.stdout.take().context("it has no output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        anyhow::ensure!(line == "ready\n", "the {role} did not start: {line}");
        Ok(process)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The end of its input ends it.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Scene {
    /// Starts both.
    pub fn start() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("hvc").tempdir()?;
        Ok(Self {
            _broker: Process::start(BROKER, folder.path())?,
            _agent: Process::start(AGENT, folder.path())?,
            folder,
        })
    }

    /// The broker's own endpoint.
    fn endpoint(&self) -> Endpoint {
        Endpoint::in_dir(self.folder.path())
    }
}

/// What the program does as a broker: serves `folder` until its input ends.
pub fn serve_broker(folder: &Path) -> anyhow::Result<()> {
    let dirs = Dirs::resolve(DirSource::One(folder.to_owned()), |_| None)
        .map_err(|variable| anyhow::anyhow!("{variable} is not set"))?;
    let broker = Broker::start(BrokerConfig::new(dirs))?;
    let handle = broker.handle();
    handle.add_container(serde_json::from_value(json!({ "name": BOX }))?)?;
    let sink = ServiceId::from_port(SINK);
    for (name, id) in [(COPY.name, COPY.id()), ("bench sink", sink)] {
        let service = json!({ "name": name, "id": id });
        handle.register(serde_json::from_value(service)?, "bench".to_owned())?;
    }
    wait_for_end()
}

/// What the program does in the container: the agent's services and the sink, until its input
/// ends.
pub fn serve_agent(folder: &Path) -> anyhow::Result<()> {
    let endpoint: PathBuf = folder.join("containers").join(BOX).join("endpoint");
    sink::start(&endpoint)?;
    let mut config = guest::Config::new();
    config.endpoint = Endpoint::from(endpoint);
    config.kvp = Some(folder.join("kvp"));
    std::thread::spawn(move || -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(guest::run(config));
        Ok(())
    });
    wait_for_end()
}

fn wait_for_end() -> anyhow::Result<()> {
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
