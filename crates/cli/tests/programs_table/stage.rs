//! A broker with containers, and programs that are started there in one way.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use hvsock_testkit::container::{Bundle, Container};
use hvsock_testkit::process::CapturedOutput;
use hvsock_testkit::programs::{Kind, Peer, Program};
use hvsock_testkit::require;
use rustix::process::Signal;
use serde_json::json;

use crate::util::{Completed, Running, TIMEOUT, World, eventually, in_container};
use crate::way::{Place, Way};

/// How many bytes travel each way.
pub const MUCH: usize = 1 << 20;
/// The same for a program that cannot read and write at once.
pub const LINE: usize = 32 << 10;
/// The port of the peers' echo, and that of the program's server.
pub const ECHO: u32 = 7001;
pub const SERVER: u32 = 7002;

/// The name of the container at [`Place::Box`].
pub const BOX: &str = "box";
/// The name of another container, in which only peers are.
pub const OTHER: &str = "other";
/// The sibling group of both, and of a guest.
pub const GROUP: &str = "all";

/// A broker with two containers, and a way to start programs.
pub struct Stage {
    pub world: World,
    pub way: Way,
    /// The container of a runtime, if the way has one.
    container: Option<Container>,
    /// A folder that every user and the container can write to.
    pub folder: PathBuf,
    pub data: Vec<u8>,
}

impl Stage {
    /// With the folders of these programs in the container.
    pub fn new(way: Way, programs: &[&Program]) -> Self {
        let world = World::new();
        for (name, port) in [("echo", ECHO), ("server", SERVER)] {
            let port = port.to_string();
            let register = ["-q", "service", "register", name, "--port", &port];
            world.ok([&register[..], &["--bind-user", "*"]].concat());
        }
        for name in [BOX, OTHER] {
            world.ok(["-q", "container", "add", name, "--group", GROUP]);
        }
        let folder = world.dir().join("work");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).unwrap();
        let container = (way == Way::Agent).then(|| {
            let folders = programs.iter().flat_map(|program| program.folders());
            start_container(&world, folders.chain([folder.as_path()]))
        });
        let data = (0..MUCH).map(|n| (n % 251) as u8).collect();
        Self {
            world,
            way,
            container,
            folder,
            data,
        }
    }

    /// The command that starts a program in the way.
    pub fn command(&self, place: Place, words: &[String]) -> Command {
        match &self.container {
            Some(container) => {
                assert_eq!(place, Place::Box);
                let words: Vec<_> = words.iter().map(String::as_str).collect();
                container.exec_command(&words)
            }
            None => self.wrapped(self.way, place, words),
        }
    }

    /// The command that starts a program by `hvsock run` as root.
    pub fn as_root(&self, place: Place, words: &[String]) -> Command {
        self.wrapped(Way::RunAsRoot, place, words)
    }

    fn wrapped(&self, way: Way, place: Place, words: &[String]) -> Command {
        let run = match place {
            Place::Host => self.world.command::<&str>([]),
            Place::Box => in_container::<&str>(&self.endpoint(BOX), []),
        };
        way.wrap(run, words)
    }

    /// The endpoint of a container.
    fn endpoint(&self, name: &str) -> PathBuf {
        let containers = self.world.dir().join("containers");
        containers.join(name).join("endpoint")
    }

    /// A command of hvsock in a partition; `None` is the host's.
    pub fn hvsock(&self, container: Option<&str>, words: &[&str]) -> Command {
        match container {
            Some(name) => in_container(&self.endpoint(name), words),
            None => self.world.command(words),
        }
    }

    /// A container, for a client that connects to it.
    pub fn container_peer(&self, name: &str) -> Peer {
        self.peer(["container", "show", name, "--json"])
    }

    /// A virtual machine, for a client that connects to it.
    pub fn machine_peer(&self, name: &str) -> Peer {
        self.peer(["vm", "show", name, "--json"])
    }

    fn peer(&self, show: [&str; 4]) -> Peer {
        let shown = self.world.json(show);
        Peer::Other {
            cid: u32::try_from(shown["cid"].as_u64().unwrap()).unwrap(),
            id: shown["id"].as_str().unwrap().to_owned(),
        }
    }

    /// Runs the client of an echo with as much input as it takes, and expects that back.
    pub fn echo(&self, program: &Program, place: Place, peer: &Peer) {
        let words = program.client(peer, ECHO, Path::new(""));
        let mut command = self.command(place, &words);
        let (sent, end) = match program.kind {
            Kind::Text => (&self.data[..LINE], "\n"),
            _ => (&self.data[..], ""),
        };
        let got = Completed::bytes_with_input(&mut command, sent);
        let is_whole = got.strip_suffix(end.as_bytes()) == Some(sent);
        assert!(is_whole, "{} bytes of {}", got.len(), sent.len());
    }

    /// Starts a command, and waits until it listens.
    pub fn serve(&self, command: &mut Command) -> Serving<'_> {
        let running = self.world.listening(command);
        let world = &self.world;
        Serving { world, running }
    }

    /// A disk with the data.
    pub fn disk(&self) -> PathBuf {
        let disk = self.folder.join("disk");
        fs::write(&disk, &self.data).unwrap();
        disk
    }
}

/// Starts a container of runc with the programs of this machine and these folders, as `container add --unmodified`
/// describes it. It waits for programs to be started in it.
fn start_container<'a>(world: &World, folders: impl Iterator<Item = &'a Path>) -> Container {
    let runc = require::runc().unwrap();
    let mut bundle = Bundle::of_host(&runc).unwrap();
    let shown = |word: &str| world.json(["container", "show", BOX, word, "--format", "oci"]);
    bundle.mount(shown("--mount"));
    bundle.seccomp(shown("--seccomp-profile"));
    bundle.mount(json!({
        "destination": "/dev/vsock", "type": "bind", "source": "/dev/null",
        "options": ["bind", "nosuid", "noexec"],
    }));
    for folder in folders.filter(|folder| !folder.starts_with("/usr")) {
        bundle.bind(folder, folder.to_str().unwrap());
    }
    let idle = "echo ready; exec sleep infinity";
    let mut container = bundle.start(&["sh", "-c", idle]).unwrap();
    let printed = CapturedOutput::from(container.running.take_stdout().unwrap());
    let errors = CapturedOutput::from(container.running.take_stderr().unwrap());
    if let Err(error) = printed.wait_for("ready", TIMEOUT) {
        panic!("no container: {error}: {}", errors.text());
    }
    container
}

/// A command that listens. Dropping it ends it, and waits until its address is free.
pub struct Serving<'a> {
    world: &'a World,
    pub running: Running,
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let before = self.world.listeners();
        if self
            .running
            .child
            .try_wait()
            .is_ok_and(|ended| ended.is_none())
        {
            self.running.signal(Signal::TERM);
            self.running.end();
            eventually("the address is free", || self.world.listeners() < before);
        }
    }
}
