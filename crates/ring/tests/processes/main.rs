//! Rings and arenas between processes: a peer that is killed, and ten thousand connections at once.
//!
//! A child process is this test program again, with [`ROLE`] in its environment and a socket as
//! its stdin, over which it receives its descriptors of each connection.

mod arenas;
mod kills;
mod many;

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, io, thread};

use hvsock_ring::{Doorbells, RingEnd, RingSide};
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::{message, seqpacket};
use hvsock_testkit::process::Running;
use rustix::io::Errno;

/// The environment variable with the role of a child process.
const ROLE: &str = "HVSOCK_RING_TEST_ROLE";

/// The main function of child processes. In the parent process it does nothing.
#[test]
fn role() {
    let Ok(role) = env::var(ROLE) else { return };
    let socket = io::stdin();
    match role.as_str() {
        "write" => kills::write_until_killed(&socket),
        "read" => kills::read_until_killed(&socket),
        "echo" => kills::echo_until_killed(&socket),
        "arena-echo" => arenas::echo_until_killed(&socket),
        "arena-connect" => arenas::connect_until_killed(&socket),
        "many" => many::one_side(&socket),
        other => panic!("{other}"),
    }
}

/// Starts a child process. Returns it and the socket to it.
fn start(role: &str) -> (Running, OwnedFd) {
    let (socket, theirs) = seqpacket::pair().unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", "role", "--nocapture", "--quiet"])
        .env(ROLE, role)
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null());
    (Running::start(&mut command).unwrap(), socket)
}

/// Sends one end's descriptors. The caller must then close its copies.
fn send_end(
    socket: &OwnedFd,
    side: RingSide,
    memory: &OwnedFd,
    doorbells: &Doorbells,
    start: [u64; 2],
) {
    let mut bytes = vec![u8::from(side == RingSide::Second)];
    start
        .iter()
        .for_each(|start| bytes.extend_from_slice(&start.to_ne_bytes()));
    let descriptors = [
        memory.as_fd(),
        doorbells.own.as_fd(),
        doorbells.peer.as_fd(),
    ];
    retry(socket, PollFlags::OUT, || {
        message::send(socket, &bytes, &descriptors)
    });
}

/// Sends a message without descriptors: the other process may continue.
fn send_next(socket: &impl AsFd) {
    retry(socket, PollFlags::OUT, || {
        message::send(socket, b"next", &[])
    });
}

/// Waits for such a message, or for the end of the other process.
fn wait_for_next(socket: &impl AsFd) {
    let message = retry(socket, PollFlags::IN, || {
        message::recv(socket, &mut [0; 17])
    });
    assert!(message.len == 4 || message.len == 0);
}

/// Retries while the socket is not ready.
fn retry<T>(socket: &impl AsFd, flags: PollFlags, mut attempt: impl FnMut() -> io::Result<T>) -> T {
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let deadline = Instant::now() + Duration::from_secs(60);
                let mut fds = [PollFd::new(socket, flags)];
                assert!(poll::wait(&mut fds, Some(deadline)).unwrap());
            }
            // The limit of descriptors in flight is reached.
            Err(error) if error.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error()) => {
                thread::sleep(Duration::from_millis(1));
            }
            result => return result.unwrap(),
        }
    }
}

/// Receives an end sent with [`send_end`]; `None` for a message without descriptors.
fn recv_end(socket: &impl AsFd) -> Option<RingEnd> {
    let mut bytes = [0; 17];
    let received = retry(socket, PollFlags::IN, || {
        message::recv_with_descriptors(socket, &mut bytes)
    });
    let mut descriptors = received.descriptors.into_iter();
    let memory = descriptors.next()?;
    let doorbells = Doorbells {
        own: descriptors.next()?,
        peer: descriptors.next()?,
    };
    let side = [RingSide::First, RingSide::Second][usize::from(bytes[0])];
    let start = [1, 9].map(|at| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap()));
    Some(RingEnd::open_at(side, memory, doorbells, start).unwrap())
}
