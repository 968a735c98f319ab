//! The conformance suite over the text protocol: a client of CONNECT and one of ACCEPT, from a container to
//! its host. Of a killed process they see no more than the end of its data.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use hvsock_endpoint::TextReply;
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_testkit::conformance::{self, LONGEST_WAIT, Ready, Stream, Transport};
use hvsock_testkit::world::World;

const PORT: u32 = 960;

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let world = World::new();
    world.register(PORT);
    world.container("web", None);
    world
});

fn main() -> ExitCode {
    let text = Text {
        from: "containers/web/endpoint",
        partition: "parent",
        accepts_from: "children",
        listener: Mutex::new(None),
    };
    conformance::main(conformance::trials(text))
}

/// How a client connects, and what the listener accepts from.
struct Text {
    from: &'static str,
    partition: &'static str,
    accepts_from: &'static str,
    /// The listener's connection, and its token.
    listener: Mutex<Option<(UnixStream, String)>>,
}

/// A client's socket once it is the data of a connection.
struct Plain(UnixStream);

impl Transport for Text {
    type Stream = Plain;

    fn name(&self) -> &'static str {
        "text"
    }

    fn pair(&self) -> io::Result<(Plain, Plain)> {
        let folder = WORLD.folder.path();
        let mut listener = self.listener.lock().expect("no panic");
        if listener.is_none() {
            let request = format!("LISTEN {} {PORT}", self.accepts_from);
            let (connection, answer) = ask(&folder.join("text"), &request)?;
            let token = answer.value("token").expect("a token").to_owned();
            *listener = Some((connection, token));
        }
        let token = listener.as_ref().map(|(_, token)| token.clone());
        // The next connection goes to the next ACCEPT, so pairs are made one after the other.
        let from: PathBuf = folder.join(self.from).with_file_name("text");
        let (connector, _) = ask(&from, &format!("CONNECT {} {PORT}", self.partition))?;
        let token = token.expect("it was made above");
        let (acceptor, _) = ask(&folder.join("text"), &format!("ACCEPT {token}"))?;
        Ok((Plain(connector), Plain(acceptor)))
    }

    fn distinguishes_death_from_eof(&self) -> bool {
        false
    }
}

fn ask(socket: &Path, request: &str) -> io::Result<(UnixStream, TextReply)> {
    let mut client = UnixStream::connect(socket)?;
    client.set_read_timeout(Some(LONGEST_WAIT))?;
    client.write_all(format!("{request}\n").as_bytes())?;
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.last() != Some(&b'\n') {
        client.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    match TextReply::parse(&line).expect("an answer") {
        reply @ TextReply::Ok(_) => Ok((client, reply)),
        refused => Err(io::Error::other(refused.to_string())),
    }
}

impl Stream for Plain {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        (&self.0).write(bytes)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }

    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.0.set_read_timeout(Some(timeout))
    }

    fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.0.set_write_timeout(Some(timeout))
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.0.set_nonblocking(nonblocking)
    }

    fn wait(&self, interest: Ready, timeout: Duration) -> io::Result<Ready> {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, interest.read);
        wanted.set(PollFlags::OUT, interest.write);
        let mut fds = [PollFd::new(&self.0, wanted)];
        poll::wait(&mut fds, Some(Instant::now() + timeout))?;
        let found = fds[0].revents();
        let ends = found.intersects(PollFlags::HUP | PollFlags::ERR);
        Ok(Ready {
            read: interest.read && (ends || found.contains(PollFlags::IN)),
            write: interest.write && (ends || found.contains(PollFlags::OUT)),
        })
    }
}
