//! The accepting process.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use hvsock::{HvListener, Lease, VmId};

use super::{Addresses, NAME, Subject, now};
use crate::worker::{self, Worker};

/// First argument that makes a bench's program run as the accepting process.
pub const ROLE: &str = "role-connect-server";

/// The accepting process. Dropping it ends the process.
#[derive(Debug)]
pub struct Server(Worker);

impl Server {
    /// Starts it at these addresses.
    pub fn start(addresses: &Addresses) -> anyhow::Result<Self> {
        let words = addresses.words();
        let mut arguments = vec![ROLE];
        arguments.extend(words.iter().map(String::as_str));
        Worker::start(&arguments).map(Self)
    }

    /// How many connections of this subject it has accepted since its start, without timed ones.
    pub fn accepted(&mut self, subject: Subject) -> anyhow::Result<u64> {
        Ok(self.0.ask(subject.word())?.parse()?)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }
}

/// The backlog of all listeners: that of `std`'s Unix sockets.
const BACKLOG: u32 = 128;

/// Body of the accepting process.
pub fn serve(arguments: &[&str]) -> anyhow::Result<()> {
    static UNIX: AtomicU64 = AtomicU64::new(0);
    static HVSOCK: AtomicU64 = AtomicU64::new(0);
    let addresses = Addresses::from_words(arguments)?;
    let listen = |service| {
        HvListener::options()
            .endpoint(addresses.endpoint.clone())
            .backlog(BACKLOG)
            .listen((VmId::LOOPBACK, service))
    };
    let endpoint = addresses.endpoint.clone().into();
    let _lease = Lease::register_at(&endpoint, NAME, addresses.timed, "")?;

    let timed = listen(addresses.timed)?;
    thread::spawn(move || accept_timed(|| Ok(timed.accept()?.0)));
    let timed = UnixListener::bind(addresses.unix_timed())?;
    thread::spawn(move || accept_timed(|| Ok(timed.accept()?.0)));
    let silent = listen(addresses.silent)?;
    thread::spawn(move || count(&HVSOCK, || silent.accept().map(drop)));
    let silent = UnixListener::bind(addresses.unix_silent())?;
    thread::spawn(move || count(&UNIX, || silent.accept().map(drop)));

    worker::serve(|words| match words {
        ["unix"] => Ok(UNIX.load(Ordering::Relaxed).to_string()),
        ["hvsock"] => Ok(HVSOCK.load(Ordering::Relaxed).to_string()),
        other => anyhow::bail!("unknown request {other:?}"),
    })
}

/// Tells each client when `accept` returned its connection.
fn accept_timed<T: Write>(accept: impl Fn() -> std::io::Result<T>) {
    loop {
        match accept() {
            // The client may have been killed.
            Ok(mut stream) => drop(stream.write_all(&now().to_le_bytes())),
            Err(error) => return failed(&error),
        }
    }
}

fn count(accepted: &AtomicU64, accept: impl Fn() -> std::io::Result<()>) {
    loop {
        match accept() {
            Ok(()) => accepted.fetch_add(1, Ordering::Relaxed),
            Err(error) => return failed(&error),
        };
    }
}

fn failed(error: &std::io::Error) {
    eprintln!("the bench's server cannot accept: {error}");
}
