//! The parts of the copy bench: a broker with a container, an agent in it, and a sink for raw bytes
//! beside the agent.

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
use sink::{CONTAINER, SINK};

/// First argument that makes the program run as a broker.
pub const BROKER: &str = "role-copy-broker";

/// First argument that makes the program run as the agent and the sink.
pub const AGENT: &str = "role-copy-agent";

/// A broker and an agent. Dropping it ends both.
#[derive(Debug)]
pub struct TestBed {
    // In drop order: the agent first.
    _agent: Process,
    _broker: Process,
    folder: tempfile::TempDir,
}

#[derive(Debug)]
struct Process(Child);

impl Process {
    /// Starts this program in another role, and waits until it is ready.
    fn start(role: &str, folder: &Path) -> anyhow::Result<Self> {
        let child = Command::new(std::env::current_exe()?)
            .arg(role)
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut process = Self(child);
        let output = process
            .0
            .stdout
            .take()
            .context("the process has no stdout")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        anyhow::ensure!(line == "ready\n", "the {role} did not start: {line}");
        Ok(process)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process exits at end of file on stdin.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl TestBed {
    /// Starts both processes.
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

    /// Sends `size` bytes to the sink: see [`sink::send`].
    fn raw(&self, from: Option<&Path>, to: Option<&Path>, size: u64) -> std::io::Result<()> {
        sink::send(self.endpoint(), from, to, size)
    }
}

/// Body of the broker process: serves `folder` until end of file on stdin.
pub fn serve_broker(folder: &Path) -> anyhow::Result<()> {
    let dirs = Dirs::resolve(DirSource::One(folder.to_owned()), |_| None)
        .map_err(|variable| anyhow::anyhow!("{variable} is not set"))?;
    let broker = Broker::start(BrokerConfig::new(dirs))?;
    let handle = broker.handle();
    handle.add_container(serde_json::from_value(json!({ "name": CONTAINER }))?)?;
    let sink = ServiceId::from_port(SINK);
    for (name, id) in [(COPY.name, COPY.id()), ("bench sink", sink)] {
        let service = json!({ "name": name, "id": id });
        handle.register(serde_json::from_value(service)?, "bench".to_owned())?;
    }
    wait_for_end()
}

/// Body of the agent process: runs the agent's services and the sink until end of file on stdin.
pub fn serve_agent(folder: &Path) -> anyhow::Result<()> {
    let endpoint: PathBuf = folder.join("containers").join(CONTAINER).join("endpoint");
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
