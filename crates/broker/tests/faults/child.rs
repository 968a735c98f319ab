//! Child processes that tests start, stop and kill. A child is this test program once more, with a
//! [`ChildRole`] in its environment.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use hvsock::{Endpoint, HvListener, HvStream, Lease, ServiceId, VmId};
use hvsock_broker::Broker;
use hvsock_client::Client;
use hvsock_testkit::process::{CapturedOutput, Running};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use serde::{Deserialize, Serialize};

use hvsock_testkit::usage;
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{PartitionEndpoint, accept, address, config, container, service};

const ROLE: &str = "HVSOCK_FAULTS_ROLE";
/// How long a child runs if nothing ends it.
const LONGEST: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ChildRole {
    /// A broker, with a soft and a hard limit of open descriptors if given.
    Broker {
        folder: PathBuf,
        descriptors: Option<[u64; 2]>,
    },
    /// Passes a descriptor between two sockets of its own, with a soft limit of open descriptors.
    PassDescriptor { soft: u64 },
    /// Connects and writes without end.
    Flood {
        endpoint: PathBuf,
        vm: VmId,
        port: u32,
    },
    /// Listens on loopback and echoes each connection's bytes, one connection after the other.
    Echo {
        endpoint: PathBuf,
        port: u32,
        backlog: u32,
    },
    /// Holds a lease on a service.
    Lease { endpoint: PathBuf, port: u32 },
}

/// A child process with a role.
pub struct Child {
    pub process: Running,
    // Drains stdout, so that the child never blocks on a full pipe.
    _output: CapturedOutput,
}

impl Child {
    /// Starts a child and waits until it is ready.
    pub fn start(role: &ChildRole) -> Self {
        Self::start_as(role, None)
    }

    /// The same, as another user.
    pub fn start_as(role: &ChildRole, uid: Option<u32>) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command
            .args([
                "child::runs_the_role_of_a_child_process",
                "--exact",
                "--nocapture",
            ])
            .env(ROLE, serde_json::to_string(role).expect("JSON"))
            .stdout(Stdio::piped());
        if let Some(uid) = uid {
            command.uid(uid).gid(uid).current_dir("/");
        }
        let mut process = Running::start(&mut command).expect("started");
        let output = CapturedOutput::from(process.take_stdout().expect("piped"));
        output.wait_for("ready", TIMEOUT).expect("it is ready");
        Self {
            process,
            _output: output,
        }
    }

    /// Kills it with `SIGKILL`.
    pub fn kill(&mut self) {
        self.process.kill().expect("killed");
    }

    /// Stops all its threads with `SIGSTOP`.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        let threads = format!("/proc/{}/task", self.process.id());
        eventually("the child is stopped", || {
            let mut threads = std::fs::read_dir(&threads).expect("a process").flatten();
            threads.all(|thread| {
                let status = std::fs::read_to_string(thread.path().join("status"));
                status.is_ok_and(|status| status.contains("\nState:\tT"))
            })
        });
    }

    /// Resumes it with `SIGCONT`.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id())
            .ok()
            .and_then(Pid::from_raw);
        rustix::process::kill_process(pid.expect("a process"), signal).expect("signalled");
    }
}

/// A broker in a child process.
pub struct BrokerProcess {
    pub child: Child,
    folder: PathBuf,
}

impl BrokerProcess {
    pub fn start(folder: &Path, descriptors: Option<u64>) -> Self {
        Self::start_as(folder, descriptors.map(|limit| [limit; 2]), None)
    }

    /// Starts a broker with a soft and a hard limit of open descriptors, as another user if given.
    pub fn start_as(folder: &Path, descriptors: Option<[u64; 2]>, uid: Option<u32>) -> Self {
        let role = ChildRole::Broker {
            folder: folder.to_owned(),
            descriptors,
        };
        let child = Child::start_as(&role, uid);
        let folder = folder.to_owned();
        Self { child, folder }
    }

    pub fn host(&self) -> PartitionEndpoint {
        PartitionEndpoint(self.folder.join("endpoint"))
    }

    pub fn inside(&self, name: &str) -> PartitionEndpoint {
        PartitionEndpoint(self.folder.join(format!("containers/{name}/endpoint")))
    }

    /// A client of its control API.
    pub fn client(&self) -> Client {
        Client::new(self.folder.join("control")).expect("a client")
    }

    pub fn register(&self, port: u32) {
        self.client().register(&service(port)).expect("registered");
    }

    pub fn container(&self, name: &str) -> PartitionEndpoint {
        let added = self.client().add_container(&container(name, &[]));
        added.expect("added");
        self.inside(name)
    }

    pub fn descriptors(&self) -> usize {
        usage::descriptors(self.child.process.id())
    }

    /// The folder of all its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The CPU time that it has used.
    pub fn cpu_time(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.child.process.id());
        let stat = std::fs::read_to_string(path).expect("a child process");
        let after_name = stat.rsplit(") ").next().expect("fields");
        let ticks: u64 = after_name
            .split(' ')
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
    }
}

#[test]
fn runs_the_role_of_a_child_process() {
    // Without the variable this is not a child process but a run of all tests.
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    match serde_json::from_str(&role).expect("a role") {
        ChildRole::Broker {
            folder,
            descriptors,
        } => broker(&folder, descriptors),
        ChildRole::PassDescriptor { soft } => pass_descriptor(soft),
        ChildRole::Flood { endpoint, vm, port } => flood(&endpoint, vm, port),
        ChildRole::Echo {
            endpoint,
            port,
            backlog,
        } => echo(&endpoint, port, backlog),
        ChildRole::Lease { endpoint, port } => {
            let name = format!("Service {port}");
            let (at, id) = (Endpoint::at(endpoint), ServiceId::from_port(port));
            let _lease = Lease::register_at(&at, &name, id, "a test").expect("a lease");
            ready();
            std::thread::sleep(LONGEST);
        }
    }
}

fn ready() {
    // The test harness may have written part of a line.
    println!("\nready");
}

fn limit_descriptors([soft, hard]: [u64; 2]) {
    let limit = Rlimit {
        current: Some(soft),
        maximum: Some(hard),
    };
    rustix::process::setrlimit(Resource::Nofile, limit).expect("a limit");
}

fn pass_descriptor(soft: u64) {
    limit_descriptors([soft; 2]);
    let (from, _to) = hvsock_sys::seqpacket::pair().expect("sockets");
    let sent = hvsock_sys::message::send(&from, b"x", &[from.as_fd()]);
    sent.expect("passed");
    ready();
}

fn broker(folder: &Path, descriptors: Option<[u64; 2]>) {
    if let Some(limits) = descriptors {
        limit_descriptors(limits);
    }
    let mut config = config(folder);
    config.control = true;
    let _broker = Broker::start(config).expect("a broker");
    ready();
    std::thread::sleep(LONGEST);
}

fn flood(endpoint: &Path, vm: VmId, port: u32) {
    let mut stream = HvStream::options()
        .endpoint(Endpoint::at(endpoint))
        .connect(address(vm, port))
        .expect("connected");
    ready();
    let block = [7; 32 * 1024];
    while stream.write_all(&block).is_ok() {}
}

fn echo(endpoint: &Path, port: u32, backlog: u32) {
    let listener = HvListener::options()
        .endpoint(Endpoint::at(endpoint))
        .backlog(backlog)
        .listen(address(VmId::LOOPBACK, port))
        .expect("listening");
    ready();
    loop {
        let mut stream = accept(&listener);
        let mut bytes = Vec::new();
        if stream.read_to_end(&mut bytes).is_ok() {
            // The client may have closed.
            let _ = stream.write_all(&bytes);
        }
    }
}
