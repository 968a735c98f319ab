//! The host's program: it accepts what guests connect and does what it is asked.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::Context;
use hvsock::{HvListener, ServiceId, VmId};

use super::Over;
use crate::stream::blocking;

/// The first argument by which a measurement's program becomes the host's.
pub const ROLE: &str = "role-host";

/// A running program; it ends with this.
#[derive(Debug)]
pub struct Host(Child);

impl Host {
    /// Starts this very program again as the host's, to listen at an endpoint of ours or at Unix
    /// sockets whose paths begin so.
    pub fn start(over: &[Over], at: &Path) -> anyhow::Result<Self> {
        let places: Vec<_> = over.iter().map(|over| (*over, over.port())).collect();
        Self::start_on(&places, at)
    }

    /// Likewise, on these ports.
    pub fn start_on(places: &[(Over, u32)], at: &Path) -> anyhow::Result<Self> {
        let words = places
            .iter()
            .map(|(over, port)| format!("{}:{port}", word(*over)));
        let mut child = Command::new(std::env::current_exe()?)
            .arg(ROLE)
            .arg(at)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().context("the host has no output")?;
        BufReader::new(output).read_line(&mut line)?;
        let host = Self(child);
        anyhow::ensure!(line == "ready\n", "the host did not start: {line}");
        Ok(host)
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The end of its input ends it.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

fn word(over: Over) -> &'static str {
    match over {
        Over::Ring => "ring",
        Over::Descriptor => "descriptor",
        Over::Peer => "unix",
    }
}

/// The path of the socket that vhost-device-vsock connects to for a port.
pub fn socket_of(base: &Path, port: u32) -> PathBuf {
    let mut path = base.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

/// What the program does, with the arguments that follow [`ROLE`]: serves until its input ends.
pub fn serve(arguments: &[&str]) -> anyhow::Result<()> {
    let [at, words @ ..] = arguments else {
        anyhow::bail!("a host has a place");
    };
    hvsock_sys::limits::raise_descriptors()?;
    for place in words {
        let place = place.split_once(':').context("a port")?;
        let port = place.1.parse()?;
        if place.0 == word(Over::Peer) {
            let listener = UnixListener::bind(socket_of(Path::new(at), port))?;
            thread::spawn(move || listener.incoming().flatten().for_each(serve_one));
        } else {
            let listener = HvListener::options()
                .endpoint(PathBuf::from(at))
                .backlog(1024)
                .shared_memory(place.0 == word(Over::Ring))
                .listen((VmId::CHILDREN, ServiceId::from_port(port)))?;
            thread::spawn(move || listener.incoming().flatten().for_each(serve_one));
        }
    }
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn serve_one(stream: impl blocking::Stream) {
    // Thousands of them.
    let thread = thread::Builder::new().stack_size(256 << 10);
    let serving = thread.spawn(move || {
        // A guest that is gone in the middle of something is a measurement's end.
        let _ = blocking::serve(stream);
    });
    if let Err(error) = serving {
        eprintln!("the host: {error}");
    }
}
