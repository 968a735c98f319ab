//! One cell of the table: a program in one way, to and from each kind of peer.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use hvsock_testkit::programs::{Kind, PYTHON, Peer, Program};

use crate::stage::{BOX, ECHO, LINE, MUCH, OTHER, SERVER, Serving, Stage};
use crate::util::{Completed, Running};
use crate::way::{Place, Way};

/// Asserts that a program works in one way, as far as the way reaches it.
pub fn works(way: Way, name: &str) {
    let (Some(()), Some(program)) = (way.is_possible(), Program::find(name, "hvsock-cli")) else {
        return;
    };
    let stage = Stage::new(way, &[&program]);
    let cell = Cell {
        stage: &stage,
        program: &program,
    };
    if program.is_static() && !way.takes_static() {
        return cell.is_refused();
    }
    match program.kind {
        Kind::Echo | Kind::Text => {
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

/// One program on the stage.
struct Cell<'a> {
    stage: &'a Stage,
    program: &'a Program,
}

impl Cell<'_> {
    /// The way says that it cannot start the program.
    fn is_refused(&self) {
        let words = self.program.client(&Peer::Own, ECHO, Path::new(""));
        let done = Completed::of(&mut self.stage.command(Place::Host, &words));
        assert_ne!(done.code, Some(0));
        let why = "is linked statically, so it loads no library";
        assert!(done.stderr.contains(why), "{}", done.stderr);
    }

    /// The context id of the container, which a program in it asks its `/dev/vsock` for.
    fn asks_for_its_cid(&self) {
        let ask = "import fcntl,struct; f=open('/dev/vsock'); print(struct.unpack('I', fcntl.ioctl(f, 0x7b9, bytes(4)))[0])";
        let words = [PYTHON, "-S", "-E", "-c", ask].map(str::to_owned);
        let mut command = match self.stage.way.places().contains(&Place::Box) {
            true => self.stage.command(Place::Box, &words),
            false => self.stage.as_root(Place::Box, &words),
        };
        let cid = Completed::of(&mut command).ok();
        let Peer::Other { cid: shown, .. } = self.stage.container_peer(BOX) else {
            panic!("another partition");
        };
        assert_eq!(cid.trim(), shown.to_string());
    }

    /// A listener in a partition that runs this command for each connection.
    fn peer(&self, container: Option<&str>, words: &[&str]) -> Serving<'_> {
        let port = ECHO.to_string();
        let listen = ["--quiet", "listen", &port, "--keep", "--"];
        let mut command = self.stage.hvsock(container, &listen);
        self.stage.serve(command.args(words))
    }

    /// Runs the client of an echo with its input, and expects that back.
    fn echo(&self, place: Place, peer: &Peer) {
        self.stage.echo(self.program, place, peer);
    }

    /// To the host and to a container, from each place.
    fn echoes_as_a_client(&self) {
        let places = self.stage.way.places();
        {
            let _host = self.peer(None, &["cat"]);
            for place in places {
                match place {
                    Place::Host => self.echo(Place::Host, &Peer::Own),
                    Place::Box => self.echo(Place::Box, &Peer::Parent),
                }
            }
        }
        if places.contains(&Place::Host) {
            let _container = self.peer(Some(BOX), &["cat"]);
            self.asks_for_its_cid();
            self.echo(Place::Host, &self.stage.container_peer(BOX));
        }
        if places.contains(&Place::Box) {
            let _other = self.peer(Some(OTHER), &["cat"]);
            self.echo(Place::Box, &self.stage.container_peer(OTHER));
        }
    }

    /// Starts the server, and waits until it listens.
    fn server(&self, place: Place, file: &Path) -> Serving<'_> {
        let words = self.program.server(SERVER, file);
        self.stage.serve(&mut self.stage.command(place, &words))
    }

    /// The command that connects from a partition to the server.
    fn connect(&self, from: Option<&str>, to: &str) -> Command {
        let port = SERVER.to_string();
        self.stage.hvsock(from, &["connect", to, &port])
    }

    /// From the host and from a container, at each place.
    fn echoes_as_a_server(&self) {
        let check = |mut command: Command| {
            // ncat drops the output of its program when it sees the half-close, on every transport.
            let got = match self.program.name {
                "ncat" => return self.echoes_a_line(&mut command),
                _ => Completed::bytes_with_input(&mut command, &self.stage.data),
            };
            assert!(got == self.stage.data, "{} bytes of {MUCH}", got.len());
        };
        for place in self.stage.way.places() {
            let _server = self.server(*place, Path::new(""));
            match place {
                Place::Host => {
                    check(self.connect(None, "loopback"));
                    check(self.connect(Some(BOX), "parent"));
                }
                Place::Box => {
                    check(self.connect(None, BOX));
                    check(self.connect(Some(OTHER), BOX));
                }
            }
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
        for place in self.stage.way.places() {
            let (name, peer) = match place {
                Place::Host => ("host", Peer::Own),
                Place::Box => ("container", Peer::Parent),
            };
            let copy = self.stage.folder.join(name);
            let words = self.program.client(&peer, ECHO, &copy);
            Completed::of(&mut self.stage.command(*place, &words)).ok();
            assert!(fs::read(copy).unwrap() == self.stage.data);
        }
    }

    /// The client is in the other place.
    fn serves_a_disk(&self) {
        let place = self.stage.way.places()[0];
        let _server = self.server(place, &self.stage.disk());
        let copy = self.stage.folder.join("copied");
        let client = |place, peer| {
            let words = self.program.client(&peer, SERVER, &copy);
            Completed::of(&mut self.stage.as_root(place, &words)).ok();
        };
        match place {
            Place::Host => client(Place::Box, Peer::Parent),
            Place::Box => client(Place::Host, self.stage.container_peer(BOX)),
        }
        assert!(fs::read(copy).unwrap() == self.stage.data);
    }

    fn answers_commands(&self) {
        let file = self.stage.folder.join("state");
        let (place, to) = match self.stage.way.places().contains(&Place::Box) {
            true => (Place::Box, BOX),
            false => (Place::Host, "loopback"),
        };
        let _server = self.server(place, &file);
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
