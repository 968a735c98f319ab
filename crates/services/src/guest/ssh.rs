//! The guest's SSH server, however it can be reached without a network.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use hvsock::tokio::HvStream;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::forward::Reached;
use crate::forward::{Address, Far, Fault, Moved, Socket, splice};

/// Where an SSH server may be listening, in the order in which they are tried; the last is that of
/// systemd's ssh-generator.
const LISTENING: [&str; 3] = [
    "tcp:127.0.0.1:22",
    "tcp:[::1]:22",
    "unix:/run/ssh-unix-local/socket",
];
/// Where OpenSSH's server is. It must be named by its whole path.
const PROGRAMS: [&str; 5] = [
    "/usr/sbin/sshd",
    "/usr/local/sbin/sshd",
    "/sbin/sshd",
    "/usr/bin/sshd",
    "/run/current-system/sw/bin/sshd",
];
/// The folder that OpenSSH's server wants for its unprivileged half, which a service manager
/// makes where it starts one.
const EMPTY_FOLDER: &str = "/run/sshd";
/// How long an sshd may take to greet, and the most of it that is read at once.
const GREETS: Duration = Duration::from_secs(10);
const GREETING: usize = 512;
/// How long an sshd whose connection is over may take to say why, and how much of it counts.
const ENDING: Duration = Duration::from_secs(2);
const LONGEST_SAID: u64 = 512;

/// How the SSH server is found.
pub(super) struct Ssh {
    /// The program to start for each connection, where one was named; nothing else is tried then.
    program: Option<PathBuf>,
}

impl Ssh {
    pub(super) fn new(program: Option<PathBuf>) -> Self {
        Self { program }
    }

    /// A connection to whatever listens, else to an sshd of its own.
    pub(super) async fn reach(&self) -> io::Result<Reached> {
        if let Some(program) = &self.program {
            return Sshd::start(program).await.map(Reached::Sshd);
        }
        for text in LISTENING {
            let Ok(address) = text.parse::<Address>() else {
                continue;
            };
            if let Ok(socket) = Socket::connect(&address).await {
                return Ok(Reached::Socket(socket, address));
            }
        }
        let program = PROGRAMS
            .map(Path::new)
            .into_iter()
            .find(|path| path.exists());
        let program = program.ok_or_else(|| {
            let text = "no SSH server listens here, and no sshd is installed";
            io::Error::new(io::ErrorKind::NotFound, text)
        })?;
        Sshd::start(program).await.map(Reached::Sshd)
    }
}

/// An sshd with one connection, as inetd starts it.
pub(super) struct Sshd {
    child: Child,
    socket: UnixStream,
    /// What it has said already: servers speak first.
    greeting: Vec<u8>,
}

impl Sshd {
    /// Starts it and waits for its first words, so that one that cannot serve (for want of a host
    /// key, say) is a refusal with its reason and not an odd end of the connection.
    async fn start(program: &Path) -> io::Result<Self> {
        if rustix::process::geteuid().is_root() {
            // If it cannot be made sshd says so itself.
            let _ = std::fs::create_dir_all(EMPTY_FOLDER);
        }
        let (own, theirs) = UnixStream::pair()?;
        let theirs = theirs.into_std()?;
        theirs.set_nonblocking(false)?;
        let input = OwnedFd::from(theirs);
        let output = input.try_clone()?;
        let mut command = Command::new(program);
        command
            .arg("-i")
            .stdin(input)
            .stdout(output)
            .stderr(Stdio::piped());
        let child = command.spawn();
        // The child's end is its own now; kept here, it would never be seen to end.
        drop(command);
        let child = child.map_err(|error| {
            let text = format!("cannot start {}: {error}", program.display());
            io::Error::new(error.kind(), text)
        })?;
        let mut sshd = Self {
            child,
            socket: own,
            greeting: vec![0; GREETING],
        };
        let heard = timeout(GREETS, sshd.socket.read(&mut sshd.greeting)).await;
        match heard {
            Ok(Ok(count @ 1..)) => {
                sshd.greeting.truncate(count);
                Ok(sshd)
            }
            Ok(_) => {
                let why = last_words(sshd.child).await;
                Err(io::Error::other(format!("{} {why}", program.display())))
            }
            Err(_) => {
                let _ = sshd.child.start_kill();
                let text = format!("{} says nothing", program.display());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
        }
    }

    /// Carries its connection's bytes.
    pub(super) async fn carry(mut self, stream: HvStream) -> Result<(), Fault> {
        let (read, write) = self.socket.split();
        let read = self.greeting.as_slice().chain(read);
        let result = splice(read, write, Far::Records(stream), &Moved::default()).await;
        drop(self.socket);
        let child = self.child;
        tokio::spawn(async move {
            tracing::debug!("sshd {}", last_words(child).await);
        });
        result
    }
}

/// Waits for an sshd to end; how it did, with what it said to its error output.
async fn last_words(mut child: Child) -> String {
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = stderr.take(LONGEST_SAID);
        let _ = timeout(ENDING, stderr.read_to_end(&mut said)).await;
    }
    let ended = match timeout(ENDING, child.wait()).await {
        Ok(Ok(status)) => format!("ended with {status}"),
        Ok(Err(error)) => format!("cannot be waited for: {error}"),
        Err(_) => "closed its connection".to_owned(),
    };
    match String::from_utf8_lossy(&said).trim() {
        "" => ended,
        said => format!("{ended}: {said}"),
    }
}
