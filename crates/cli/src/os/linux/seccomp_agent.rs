//! The agent to which container runtimes give the listeners of seccomp filters, and its supervisors.
//!
//! Each listener gets a process of its own. It answers every `connect` and `bind` of its container, also those of
//! other sockets, and without it they fail. So it must not end with the broker; and what one container does to
//! its supervisor concerns no other.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hvsock_address::{PartitionName, PartitionRef};
use hvsock_control::{Partition, PartitionKind};
use hvsock_endpoint::Dirs;
use hvsock_interpose::agent::{ContainerProcess, Handover, Inbox, InboxError};
use hvsock_text::printable;

use super::BrokerArgs;

/// The command whose option `--supervise` is for supervisors.
pub const COMMAND: &str = "seccomp-agent";
/// How many supervisors there are at most: for all containers, and for one.
const MAX_SUPERVISORS: usize = 4096;
const MAX_PER_CONTAINER: usize = 256;
/// How long the broker may take to answer.
const BROKER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an ended supervisor may stay a zombie.
const REAP_INTERVAL: Duration = Duration::from_secs(10);
/// How long to wait after an error of the socket itself, such as too many open files.
const PAUSE: Duration = Duration::from_secs(1);

/// The agent of one broker's containers.
pub struct Agent {
    inbox: Inbox,
    broker: BrokerArgs,
    supervisors: Supervisors,
    /// Locked while there is the agent.
    _lock: File,
}

impl Agent {
    /// Listens in the broker's folder.
    pub fn bind(dirs: &Dirs) -> Result<Self> {
        let path = dirs.seccomp_agent();
        // Another user who could open it could lock it.
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(path.with_extension("lock"))?;
        if lock.try_lock().is_err() {
            bail!("another process is the agent");
        }
        let owner = rustix::process::geteuid().as_raw();
        Ok(Self {
            inbox: Inbox::bind(&path, owner)?,
            broker: BrokerArgs::in_dir(&dirs.run),
            supervisors: Supervisors::default(),
            _lock: lock,
        })
    }

    /// Serves runtimes on a thread of its own until the process ends.
    pub fn start(mut self) -> io::Result<()> {
        let thread = thread::Builder::new().name("hvsock-seccomp".into());
        thread.spawn(move || self.serve()).map(drop)
    }

    /// Serves runtimes until the process ends.
    pub fn serve(&mut self) -> ! {
        loop {
            let next_look =
                (!self.supervisors.0.is_empty()).then(|| Instant::now() + REAP_INTERVAL);
            match self.inbox.receive(next_look) {
                Ok(Some(handover)) => self.take(handover),
                Ok(None) => self.supervisors.reap(),
                Err(error) => {
                    tracing::warn!("cannot receive from container runtimes: {error}");
                    thread::sleep(PAUSE);
                }
            }
        }
    }

    fn take(&mut self, handover: Handover) {
        let (process, listener) = match handover {
            Ok(taken) => taken,
            Err(InboxError::Nothing) => return,
            Err(error) => {
                let error = anyhow::Error::new(error);
                tracing::warn!("no container gets an agent: {error:#}");
                return;
            }
        };
        let id = printable(&process.container);
        let which = match process.pid {
            Some(pid) => format!("process {pid}"),
            None => "a process".to_owned(),
        };
        match self.supervise(&process, listener.into()) {
            Ok(partition) => {
                let name = partition.name;
                tracing::info!("answers socket calls of {name}: {which} of the container {id}");
            }
            Err(error) => tracing::warn!(
                "socket calls of {which} of the container {id} fail with ENOSYS: {error:#}"
            ),
        }
    }

    fn supervise(&mut self, process: &ContainerProcess, listener: OwnedFd) -> Result<Partition> {
        let partition = self.partition(process)?;
        let endpoint = partition.endpoint.as_deref();
        let endpoint = endpoint.context("the broker has no endpoint for it")?;
        self.supervisors
            .start(&partition.name, endpoint, listener)?;
        Ok(partition)
    }

    /// The partition that the container is.
    fn partition(&self, process: &ContainerProcess) -> Result<Partition> {
        let metadata = printable(&process.metadata);
        let name: PartitionName = process.metadata.parse().with_context(|| {
            format!("`listenerMetadata` of its profile, \"{metadata}\", is no name of a container")
        })?;
        let client = self
            .broker
            .client()?
            .with_deadline(Instant::now() + BROKER_TIMEOUT);
        let partition = client.partition(&PartitionRef::Name(name))?;
        check(&partition, process)?;
        Ok(partition)
    }
}

/// Fails if the partition is none of a container here, or if it is bound to another one.
fn check(partition: &Partition, process: &ContainerProcess) -> Result<()> {
    let name = &partition.name;
    if partition.kind != PartitionKind::Container || name.parts().is_some() {
        bail!("{name} is not a container of this broker");
    }
    let bound = partition.container.as_ref();
    let bound = bound.and_then(|container| container.oci_id.as_deref());
    match bound {
        Some(id) if id != process.container => {
            bail!("{name} is bound to the container {}", printable(id))
        }
        _ => Ok(()),
    }
}

/// The processes that answer containers' calls.
#[derive(Default)]
struct Supervisors(HashMap<PartitionName, Vec<Child>>);

impl Supervisors {
    fn start(&mut self, name: &PartitionName, endpoint: &Path, listener: OwnedFd) -> Result<()> {
        self.reap();
        let total: usize = self.0.values().map(Vec::len).sum();
        let of_container = self.0.get(name).map_or(0, Vec::len);
        if total >= MAX_SUPERVISORS || of_container >= MAX_PER_CONTAINER {
            bail!("too many of its processes were started by the runtime and run");
        }
        // The program may have been replaced since it was started.
        let mut command = Command::new("/proc/self/exe");
        command.arg(COMMAND).arg("--supervise").arg(endpoint);
        command
            .stdin(listener)
            .stdout(Stdio::null())
            .current_dir("/");
        // A signal for the broker's terminal is not for it.
        command.process_group(0);
        let child = command.spawn().context("cannot start a supervisor")?;
        self.0.entry(name.clone()).or_default().push(child);
        Ok(())
    }

    /// Forgets those that have ended.
    fn reap(&mut self) {
        self.0.retain(|_, children| {
            children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
            !children.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn partition(name: &str, kind: &str, container: &serde_json::Value) -> Partition {
        let partition = json!({
            "name": name, "id": "e0e16197-dd56-4a10-9195-5ee7a155a838", "kind": kind, "state": "running",
            "parent": "root", "groups": [], "endpoint": null, "listeners": 0, "connections": 0,
            "container": container,
        });
        serde_json::from_value(partition).expect("a partition")
    }

    #[test]
    fn only_the_container_that_the_runtime_has_bound_gets_its_partition() {
        let message =
            r#"{"fds":["seccompFd"],"pid":7,"metadata":"web","state":{"id":"c1","pid":7}}"#;
        let process = ContainerProcess::parse(message.as_bytes()).expect("a message");
        let check = |name, kind, container| check(&partition(name, kind, &container), &process);
        let bound = |id: &str| json!({"oci_id": id});
        check("web", "container", bound("c1")).expect("it is the one");
        // Nothing was bound: a mount without hooks.
        check("web", "container", json!({})).expect("unknown");
        check("web", "container", json!(null)).expect("unknown");
        let other = check("web", "container", bound("c2")).expect_err("another");
        assert_eq!(other.to_string(), "web is bound to the container c2");
        for (name, kind) in [("web", "vm"), ("web", "host"), ("vm/web", "container")] {
            let error = check(name, kind, json!(null)).expect_err(kind);
            assert_eq!(
                error.to_string(),
                format!("{name} is not a container of this broker")
            );
        }
    }
}
