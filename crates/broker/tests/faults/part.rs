//! Processes of their own that tests start, watch, stop and kill: this program once more, with a
//! part to play.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use hvsock::{Endpoint, HvListener, HvStream, Lease, ServiceId, VmId};
use hvsock_broker::Broker;
use hvsock_broker::api::client::Client;
use hvsock_testkit::process::{Gathered, Running};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use serde::{Deserialize, Serialize};

use crate::world::{
    PATIENCE, Place, accept, address, config, container, descriptors_of, eventually, service,
};

const PART: &str = "HVSOCK_FAULTS_PART";
/// How long a part is played if nobody ends it.
const LONGEST: Duration = Duration::from_secs(120);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Part {
    /// A broker, which may have so many descriptors.
    Broker {
        folder: PathBuf,
        descriptors: Option<u64>,
    },
    /// Connects and writes without end.
    Flood {
        endpoint: PathBuf,
        vm: VmId,
        port: u32,
    },
    /// Listens on loopback and gives back what comes, one connection after the other.
    Echo {
        endpoint: PathBuf,
        port: u32,
        backlog: u32,
    },
    /// Has a lease on a service.
    Lease { endpoint: PathBuf, port: u32 },
}

/// A process that plays a part.
pub struct Playing {
    pub process: Running,
    // Read on, so that it is never stuck with what it says.
    _said: Gathered,
}

impl Playing {
    /// Starts one and waits until it is ready.
    pub fn start(part: &Part) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command
            .args(["part::is_played_for_other_tests", "--exact", "--nocapture"])
            .env(PART, serde_json::to_string(part).expect("JSON"))
            .stdout(Stdio::piped());
        let mut process = Running::start(&mut command).expect("started");
        let said = Gathered::from(process.take_stdout().expect("piped"));
        said.wait_for("ready", PATIENCE).expect("it plays");
        Self {
            process,
            _said: said,
        }
    }

    /// Ends it by `SIGKILL`.
    pub fn kill(&mut self) {
        self.process.kill().expect("killed");
    }

    /// Makes all its threads stand still.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        let threads = format!("/proc/{}/task", self.process.id());
        eventually("it stands still", || {
            let mut threads = std::fs::read_dir(&threads).expect("a process").flatten();
            threads.all(|thread| {
                let status = std::fs::read_to_string(thread.path().join("status"));
                status.is_ok_and(|status| status.contains("\nState:\tT"))
            })
        });
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id())
            .ok()
            .and_then(Pid::from_raw);
        rustix::process::kill_process(pid.expect("a process"), signal).expect("signalled");
    }
}

/// A broker in a process of its own.
pub struct BrokerProcess {
    pub playing: Playing,
    folder: PathBuf,
}

impl BrokerProcess {
    pub fn start(folder: &Path, descriptors: Option<u64>) -> Self {
        let part = Part::Broker {
            folder: folder.to_owned(),
            descriptors,
        };
        let playing = Playing::start(&part);
        let folder = folder.to_owned();
        Self { playing, folder }
    }

    pub fn host(&self) -> Place {
        Place(self.folder.join("endpoint"))
    }

    pub fn inside(&self, name: &str) -> Place {
        Place(self.folder.join(format!("containers/{name}/endpoint")))
    }

    /// What an operator uses.
    pub fn client(&self) -> Client {
        Client::new(self.folder.join("control")).expect("a client")
    }

    pub fn register(&self, port: u32) {
        self.client().register(&service(port)).expect("registered");
    }

    pub fn container(&self, name: &str) -> Place {
        let added = self.client().add_container(&container(name, &[]));
        added.expect("added");
        self.inside(name)
    }

    pub fn descriptors(&self) -> usize {
        descriptors_of(self.playing.process.id())
    }

    /// The processor time that it has used.
    pub fn cpu_time(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.playing.process.id());
        let stat = std::fs::read_to_string(path).expect("a process of ours");
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
fn is_played_for_other_tests() {
    let Ok(part) = std::env::var(PART) else {
        return;
    };
    match serde_json::from_str(&part).expect("a part") {
        Part::Broker {
            folder,
            descriptors,
        } => broker(&folder, descriptors),
        Part::Flood { endpoint, vm, port } => flood(&endpoint, vm, port),
        Part::Echo {
            endpoint,
            port,
            backlog,
        } => echo(&endpoint, port, backlog),
        Part::Lease { endpoint, port } => {
            let name = format!("Service {port}");
            let (at, id) = (Endpoint::at(endpoint), ServiceId::from_port(port));
            let _lease = Lease::register_at(&at, &name, id, "a test").expect("a lease");
            ready();
            std::thread::sleep(LONGEST);
        }
    }
}

fn ready() {
    // The test's own output is captured in lines.
    println!("\nready");
}

fn broker(folder: &Path, descriptors: Option<u64>) {
    if descriptors.is_some() {
        let limit = Rlimit {
            current: descriptors,
            maximum: descriptors,
        };
        rustix::process::setrlimit(Resource::Nofile, limit).expect("a limit");
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
            // Whoever asked may have lost patience.
            let _ = stream.write_all(&bytes);
        }
    }
}
