//! Runs a broker in a separate process, so that its memory and descriptors can be measured.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use hvsock::ServiceId;
use hvsock_broker::{Broker, BrokerConfig};
use hvsock_endpoint::{DirSource, Dirs};
use serde_json::json;

use crate::vm::{GuestLaneKind, MORE_PORTS};

/// First argument that makes a bench's program run as a broker.
pub const ROLE: &str = "role-broker";

/// The vsock ports of services that are registered as direct: one for each peer that may run beside others.
pub const DIRECT_PORTS: [u32; 2] = [990, 991];

/// A running broker process. Dropping it ends the process.
#[derive(Debug)]
pub struct BrokerProcess {
    child: Child,
    folder: tempfile::TempDir,
    dirs: Dirs,
}

impl BrokerProcess {
    /// Starts this program as a broker.
    pub fn start() -> anyhow::Result<Self> {
        Self::with_vms(0)
    }

    /// Starts a broker with `count` VMs and the services that their guests use.
    pub fn with_vms(count: usize) -> anyhow::Result<Self> {
        Self::of_build(&std::env::current_exe()?, count)
    }

    /// As [`with_vms`](Self::with_vms), of this build of the bench.
    pub fn of_build(build: &Path, count: usize) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("hvb").tempdir()?;
        let mut child = Command::new(build)
            .arg(ROLE)
            .arg(folder.path())
            .arg(count.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().context("the broker has no stdout")?;
        BufReader::new(output).read_line(&mut line)?;
        anyhow::ensure!(line == "ready\n", "the broker did not start: {line}");
        let dirs = dirs(folder.path())?;
        Ok(Self {
            child,
            folder,
            dirs,
        })
    }

    /// The path of the endpoint of the broker's own partition.
    pub fn endpoint(&self) -> PathBuf {
        self.folder.path().join("endpoint")
    }

    /// The folder of the broker, which the commands of hvsock take as `--dir`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The path of the socket of the control API.
    pub fn control(&self) -> PathBuf {
        self.dirs.control()
    }

    /// The path of the vhost-user socket of VM `number`, counted from zero.
    pub fn vm_socket(&self, number: usize) -> PathBuf {
        self.dirs.vm_socket(&vm_name(number))
    }

    /// The context id of VM `number`, counted from zero.
    pub fn cid(number: usize) -> u32 {
        1000 + number as u32
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        // The process exits at end of file on stdin.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Body of the broker process with `vms` VMs: serves `folder` until end of file on stdin.
pub fn serve(folder: &Path, vms: usize) -> anyhow::Result<()> {
    hvsock_sys::limits::raise_descriptors()?;
    let mut config = BrokerConfig::new(dirs(folder)?);
    config.limits.connections_per_partition = config.limits.connections;
    let broker = Broker::start(config)?;
    let handle = broker.handle();
    for number in 0..vms {
        let (name, cid) = (vm_name(number), BrokerProcess::cid(number));
        // User-mode Linux cannot seal its memory.
        let unsealed =
            json!({ "name": name, "cid": cid, "unsealed_memory": true, "groups": ["bench"] });
        handle.add_vm(serde_json::from_value(unsealed)?)?;
    }
    for port in DIRECT_PORTS {
        let direct = json!({
            "name": format!("Bench direct {port}"),
            "id": ServiceId::from_port(port),
            "transport": "direct",
        });
        handle.register(serde_json::from_value(direct)?, "bench".to_owned())?;
    }
    if vms > 0 {
        let ports = [GuestLaneKind::Ring, GuestLaneKind::Descriptor].map(GuestLaneKind::port);
        for port in ports.into_iter().chain(MORE_PORTS) {
            let id = ServiceId::from_port(port);
            let service = json!({ "name": format!("Bench {port}"), "id": id });
            handle.register(serde_json::from_value(service)?, "bench".to_owned())?;
        }
    }
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn dirs(folder: &Path) -> anyhow::Result<Dirs> {
    Dirs::resolve(DirSource::One(folder.to_owned()), |_| None)
        .map_err(|variable| anyhow::anyhow!("{variable} is not set"))
}

fn vm_name(number: usize) -> String {
    format!("vm{number}")
}
