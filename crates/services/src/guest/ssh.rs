//! The guest's SSH server, reached without a network.

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

use crate::forward::{Address, Fault, Remote, Socket, Transferred, relay};

/// The addresses where an SSH server may listen, in the order of the attempts. The last one is from
/// systemd-ssh-generator.
const ADDRESSES: [&str; 3] = [
    "tcp:127.0.0.1:22",
    "tcp:[::1]:22",
    "unix:/run/ssh-unix-local/socket",
];
/// The paths of OpenSSH's server. It must be started by its absolute path.
const PROGRAMS: [&str; 5] = [
    "/usr/sbin/sshd",
    "/usr/local/sbin/sshd",
    "/sbin/sshd",
    "/usr/bin/sshd",
    "/run/current-system/sw/bin/sshd",
];
/// The privilege separation directory of OpenSSH's server. Usually a service manager creates it.
const PRIVSEP_FOLDER: &str = "/run/sshd";
/// How long an sshd may take to send its banner, and the most of it that is read at once, in bytes.
const BANNER_TIMEOUT: Duration = Duration::from_secs(10);
const BANNER: usize = 512;
/// How long a closed sshd may take to exit, and the most of its error output that is kept, in bytes.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
const STDERR_LIMIT: u64 = 512;

/// The SSH server that was found.
pub(super) enum Server {
    /// One that listens, at this address.
    Listening(Socket, Address),
    /// One that was started for this connection.
    Started(Sshd),
}

/// How the SSH server is found.
pub(super) struct Ssh {
    /// The program to start for each connection. If it is set, nothing else is tried.
    program: Option<PathBuf>,
}

impl Ssh {
    pub(super) fn new(program: Option<PathBuf>) -> Self {
        Self { program }
    }

    /// Connects to a listening server, or else starts an sshd.
    pub(super) async fn reach(&self) -> io::Result<Server> {
        if let Some(program) = &self.program {
            return Sshd::start(program).await.map(Server::Started);
        }
        for text in ADDRESSES {
            let Ok(address) = text.parse::<Address>() else {
                continue;
            };
            if let Ok(socket) = Socket::connect(&address).await {
                return Ok(Server::Listening(socket, address));
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
        Sshd::start(program).await.map(Server::Started)
    }
}

/// An sshd that serves one connection, as inetd starts it.
pub(super) struct Sshd {
    child: Child,
    socket: UnixStream,
    /// The bytes that it has sent so far: SSH servers send their banner first.
    banner: Vec<u8>,
}

impl Sshd {
    /// Starts sshd and waits for its banner. So an sshd that cannot serve (for example, without a
    /// host key) causes a refusal with its reason, and not a broken connection.
    async fn start(program: &Path) -> io::Result<Self> {
        if rustix::process::geteuid().is_root() {
            // If the directory cannot be created, sshd reports that itself.
            let _ = crate::guest::folder::create(Path::new(PRIVSEP_FOLDER), 0o755);
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
        // Close this process's copy of the child's end: otherwise its end of file would never arrive.
        drop(command);
        let child = child.map_err(|error| {
            let text = format!("cannot start {}: {error}", program.display());
            io::Error::new(error.kind(), text)
        })?;
        let mut sshd = Self {
            child,
            socket: own,
            banner: vec![0; BANNER],
        };
        let received = timeout(BANNER_TIMEOUT, sshd.socket.read(&mut sshd.banner)).await;
        match received {
            Ok(Ok(count @ 1..)) => {
                sshd.banner.truncate(count);
                Ok(sshd)
            }
            Ok(_) => {
                let why = exit_reason(sshd.child).await;
                Err(io::Error::other(format!("{} {why}", program.display())))
            }
            Err(_) => {
                let _ = sshd.child.start_kill();
                let text = format!("{} does not send its banner", program.display());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
        }
    }

    /// Relays the connection.
    pub(super) async fn relay(mut self, stream: HvStream) -> Result<(), Fault> {
        let (read, write) = self.socket.split();
        let read = self.banner.as_slice().chain(read);
        let result = relay(
            read,
            write,
            Remote::Records(stream),
            &Transferred::default(),
        )
        .await;
        drop(self.socket);
        let child = self.child;
        tokio::spawn(async move {
            tracing::debug!("sshd {}", exit_reason(child).await);
        });
        result
    }
}

/// Waits for an sshd to exit. Returns its exit status with its error output.
async fn exit_reason(mut child: Child) -> String {
    let mut stderr_text = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = stderr.take(STDERR_LIMIT);
        let _ = timeout(EXIT_TIMEOUT, stderr.read_to_end(&mut stderr_text)).await;
    }
    let ended = match timeout(EXIT_TIMEOUT, child.wait()).await {
        Ok(Ok(status)) => format!("ended with {status}"),
        Ok(Err(error)) => format!("cannot wait for it: {error}"),
        Err(_) => "closed its connection".to_owned(),
    };
    match String::from_utf8_lossy(&stderr_text).trim() {
        "" => ended,
        stderr_text => format!("{ended}: {stderr_text}"),
    }
}
