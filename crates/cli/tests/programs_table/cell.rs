//! One cell of the table: a program in one way, to and from each kind of peer.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hvsock_testkit::programs::{Kind, PYTHON, Program};
use rustix::process::Signal;

use crate::util::{Completed, Running, World, eventually, in_container};
use crate::way::Way;

/// How many bytes travel each way.
pub const MUCH: usize = 1 << 20;
/// The same for a program that cannot read and write at once.
pub const LINE: usize = 32 << 10;
/// The port of the peers' echo, and that of the program's server.
const ECHO: u32 = 7001;
pub const SERVER: u32 = 7002;
/// A program's own partition, and the host of a container.
const LOCAL: u32 = 1;
const HOST: u32 = 2;

/// Asserts that a program works in one way, as far as the way reaches it.
pub fn works(way: Way, name: &str) {
    let (Some(()), Some(program)) = (way.is_possible(), Program::find(name, "hvsock-cli")) else {
        return;
    };
    let stage = Stage::new(way);
    let cell = Cell {
        stage: &stage,
        program: &program,
    };
    if program.is_static() && !way.takes_static() {
        return cell.is_refused();
    }
    match program.kind {
        Kind::Echo => {
            cell.echoes_as_a_client();
            cell.echoes_as_a_server();
        }
        Kind::Disk => {
            cell.copies_a_disk();
            cell.serves_a_disk();
        }
        Kind::Agent => cell.answers_commands(),
    }
}

/// A broker with a container, and a way to start programs there.
pub struct Stage {
    pub world: World,
    way: Way,
    /// The endpoint of the container.
    container: PathBuf,
    /// A folder that every user can write to.
    pub folder: PathBuf,
    pub data: Vec<u8>,
}

impl Stage {
    pub fn new(way: Way) -> Self {
        let world = World::new();
        for (name, port) in [("echo", ECHO), ("server", SERVER)] {
            let port = port.to_string();
            world.ok([
                "-q",
                "service",
                "register",
                name,
                "--port",
                &port,
                "--bind-user",
                "*",
            ]);
        }
        let container = world.container("box");
        let folder = world.dir().join("work");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).unwrap();
        let data = (0..MUCH).map(|n| (n % 251) as u8).collect();
        Self {
            world,
            way,
            container,
            folder,
            data,
        }
    }

    /// The command that starts a program in the way, on the host or in the container.
    pub fn command(&self, endpoint: Option<&Path>, words: &[String]) -> Command {
        self.way.command(&self.world, endpoint, words)
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

/// A command that listens. Dropping it ends it, and waits until its address is free.
pub struct Serving<'a> {
    world: &'a World,
    running: Running,
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

/// One program on the stage.
struct Cell<'a> {
    stage: &'a Stage,
    program: &'a Program,
}

impl Cell<'_> {
    /// The way says that it cannot start the program.
    fn is_refused(&self) {
        let words = self.program.client(LOCAL, ECHO, Path::new(""));
        let done = Completed::of(&mut self.stage.command(None, &words));
        assert_ne!(done.code, Some(0));
        let why = "is linked statically, so it loads no library";
        assert!(done.stderr.contains(why), "{}", done.stderr);
    }

    /// The context id of the container, which a program in it asks its `/dev/vsock` for.
    fn container_cid(&self) -> u32 {
        let ask = "import fcntl,struct; f=open('/dev/vsock'); print(struct.unpack('I', fcntl.ioctl(f, 0x7b9, bytes(4)))[0])";
        let words = [
            PYTHON.into(),
            "-S".into(),
            "-E".into(),
            "-c".into(),
            ask.into(),
        ];
        let container = Some(self.stage.container.as_path());
        let mut command = Way::RunAsRoot.command(&self.stage.world, container, &words);
        Completed::of(&mut command).ok().trim().parse().unwrap()
    }

    /// A listener in the host or the container that runs this command for each connection.
    fn peer(&self, endpoint: Option<&Path>, words: &[&str]) -> Serving<'_> {
        let port = ECHO.to_string();
        let listen = ["--quiet", "listen", &port, "--keep", "--"];
        let mut command = match endpoint {
            Some(endpoint) => in_container(endpoint, listen),
            None => self.stage.world.command(listen),
        };
        self.stage.serve(command.args(words))
    }

    /// Runs the client of an echo with much input, and expects that back.
    fn echo(&self, endpoint: Option<&Path>, cid: u32) {
        let words = self.program.client(cid, ECHO, Path::new(""));
        let mut command = self.stage.command(endpoint, &words);
        let got = Completed::bytes_with_input(&mut command, &self.stage.data);
        assert!(got == self.stage.data, "{} bytes of {MUCH}", got.len());
    }

    fn echoes_as_a_client(&self) {
        {
            let _host = self.peer(None, &["cat"]);
            self.echo(None, LOCAL);
            if self.stage.way.enters_containers() {
                self.echo(Some(&self.stage.container), HOST);
            }
        }
        let _container = self.peer(Some(&self.stage.container), &["cat"]);
        self.echo(None, self.container_cid());
    }

    /// Starts the server in the host or the container, and waits until it listens.
    fn server(&self, endpoint: Option<&Path>, file: &Path) -> Serving<'_> {
        let words = self.program.server(SERVER, file);
        self.stage.serve(&mut self.stage.command(endpoint, &words))
    }

    /// The command that connects to the server from the other partition, or in the same one.
    fn connect(&self, from: Option<&Path>, to: &str) -> Command {
        let port = SERVER.to_string();
        let words = ["connect", to, &port];
        match from {
            Some(endpoint) => in_container(endpoint, words),
            None => self.stage.world.command(words),
        }
    }

    fn echoes_as_a_server(&self) {
        let container = self.stage.container.as_path();
        let check = |mut command: Command| {
            // ncat drops the output of its program when it sees the half-close, on every transport.
            let got = match self.program.name {
                "ncat" => return self.echoes_a_line(&mut command),
                _ => Completed::bytes_with_input(&mut command, &self.stage.data),
            };
            assert!(got == self.stage.data, "{} bytes of {MUCH}", got.len());
        };
        {
            let _server = self.server(None, Path::new(""));
            check(self.connect(None, "loopback"));
            check(self.connect(Some(container), "parent"));
        }
        if self.stage.way.enters_containers() {
            let _server = self.server(Some(container), Path::new(""));
            check(self.connect(None, "box"));
        }
    }

    /// Sends a line, reads it back, and half-closes afterwards. Not much: ncat's one thread writes to its program
    /// without reading from it meanwhile.
    fn echoes_a_line(&self, command: &mut Command) {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut connection = Running::start(command);
        let mut input = connection.child.stdin.take().unwrap();
        let line = vec![b'x'; LINE];
        let sent = line.clone();
        let sending = std::thread::spawn(move || {
            input.write_all(&sent).unwrap();
            input.write_all(b"\n").unwrap();
            input
        });
        let mut got = Vec::new();
        let stdout = connection.child.stdout.as_mut().unwrap();
        BufReader::new(stdout).read_until(b'\n', &mut got).unwrap();
        assert!(got.len() == LINE + 1, "{} bytes", got.len());
        drop(sending.join().unwrap());
        assert!(connection.end().success());
    }

    fn copies_a_disk(&self) {
        let disk = self.stage.disk();
        let _host = self.peer(None, &["nbdkit", "-s", "file", disk.to_str().unwrap()]);
        let container = Some(self.stage.container.as_path());
        for (name, endpoint, cid) in [("host", None, LOCAL), ("container", container, HOST)] {
            if endpoint.is_some() && !self.stage.way.enters_containers() {
                continue;
            }
            let copy = self.stage.folder.join(name);
            let words = self.program.client(cid, ECHO, &copy);
            Completed::of(&mut self.stage.command(endpoint, &words)).ok();
            assert!(fs::read(copy).unwrap() == self.stage.data);
        }
    }

    fn serves_a_disk(&self) {
        let _server = self.server(None, &self.stage.disk());
        let copy = self.stage.folder.join("copied");
        // The client is in the container, in the same way if that can enter it.
        let words = self.program.client(HOST, SERVER, &copy);
        let way = match self.stage.way.enters_containers() {
            true => self.stage.way,
            false => Way::RunAsRoot,
        };
        let container = Some(self.stage.container.as_path());
        Completed::of(&mut way.command(&self.stage.world, container, &words)).ok();
        assert!(fs::read(copy).unwrap() == self.stage.data);
    }

    fn answers_commands(&self) {
        let file = self.stage.folder.join("state");
        let (container, to) = match self.stage.way.enters_containers() {
            true => (Some(self.stage.container.as_path()), "box"),
            false => (None, "loopback"),
        };
        let _server = self.server(container, &file);
        let mut command = self.connect(None, to);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut connection = Running::start(&mut command);
        connection.write(b"{\"execute\":\"guest-sync\",\"arguments\":{\"id\":7001}}\n");
        assert_eq!(connection.line(), "{\"return\": 7001}");
        let text = "x".repeat(60_000);
        let request = format!(
            "{{\"execute\":\"guest-exec\",\"arguments\":{{\"path\":\"/bin/echo\",\"arg\":[\"{text}\"]}}}}\n"
        );
        connection.write(request.as_bytes());
        let answer = connection.line();
        assert!(answer.starts_with("{\"return\": {\"pid\": "), "{answer}");
        connection.end_input();
    }
}
