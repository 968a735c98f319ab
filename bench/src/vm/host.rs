//! The host program. It accepts connections of guests and serves their requests.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::Context;
use hvsock::{HvListener, ServiceId, VmId};

use super::GuestLaneKind;
use crate::stream::blocking;

/// First argument that makes a bench's program run as the host program.
pub const ROLE: &str = "role-host";

/// A running host program. Dropping it ends the process.
#[derive(Debug)]
pub struct Host(Child);

impl Host {
    /// Starts this program as the host program, on the ports of these lanes. `at` is an endpoint of hvsock,
    /// or the prefix of the paths of Unix sockets.
    pub fn start(over: &[GuestLaneKind], at: &Path) -> anyhow::Result<Self> {
        Self::start_of(&std::env::current_exe()?, over, at)
    }

    /// As [`start`](Self::start), of this build of the bench.
    pub fn start_of(build: &Path, over: &[GuestLaneKind], at: &Path) -> anyhow::Result<Self> {
        let listeners: Vec<_> = over.iter().map(|over| (*over, over.port())).collect();
        Self::start_program(build, &listeners, at)
    }

    /// Starts the host program on these ports.
    pub fn start_on(listeners: &[(GuestLaneKind, u32)], at: &Path) -> anyhow::Result<Self> {
        Self::start_program(&std::env::current_exe()?, listeners, at)
    }

    fn start_program(
        build: &Path,
        listeners: &[(GuestLaneKind, u32)],
        at: &Path,
    ) -> anyhow::Result<Self> {
        let words = listeners
            .iter()
            .map(|(over, port)| format!("{}:{port}", word(*over)));
        let mut child = Command::new(build)
            .arg(ROLE)
            .arg(at)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = child
            .stdout
            .take()
            .context("the host program has no stdout")?;
        BufReader::new(output).read_line(&mut line)?;
        let host = Self(child);
        anyhow::ensure!(line == "ready\n", "the host program did not start: {line}");
        Ok(host)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The process exits at end of file on stdin.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn word(over: GuestLaneKind) -> &'static str {
    match over {
        GuestLaneKind::Descriptor => "descriptor",
        GuestLaneKind::Peer => "unix",
        _ => "ring",
    }
}

/// Path of the Unix socket to which vhost-device-vsock connects for a port.
pub fn socket_of(base: &Path, port: u32) -> PathBuf {
    let mut path = base.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

/// Body of the host program, with the arguments behind [`ROLE`]: serves until end of file on stdin.
pub fn serve(arguments: &[&str]) -> anyhow::Result<()> {
    let [at, words @ ..] = arguments else {
        anyhow::bail!("the host program needs an endpoint or a path");
    };
    hvsock_sys::limits::raise_descriptors()?;
    for listener in words {
        let (kind, port) = listener.split_once(':').context("a port")?;
        let port = port.parse()?;
        if kind == word(GuestLaneKind::Peer) {
            let listener = UnixListener::bind(socket_of(Path::new(at), port))?;
            thread::spawn(move || listener.incoming().flatten().for_each(serve_one));
        } else {
            let listener = HvListener::options()
                .endpoint(PathBuf::from(at))
                .backlog(1024)
                .shared_memory(kind == word(GuestLaneKind::Ring))
                // A container in a virtual machine is no child.
                .listen((VmId::WILDCARD, ServiceId::from_port(port)))?;
            thread::spawn(move || listener.incoming().flatten().for_each(serve_one));
        }
    }
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn serve_one(stream: impl blocking::Stream) {
    // Small stacks, because there are thousands of threads.
    let thread = thread::Builder::new().stack_size(256 << 10);
    let serving = thread.spawn(move || {
        // A guest may disconnect at the end of a measurement.
        let _ = blocking::serve(stream);
    });
    if let Err(error) = serving {
        eprintln!("host program: {error}");
    }
}
