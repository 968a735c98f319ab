//! Rings between processes: what is left when one of them is killed, and ten thousand at once.
//!
//! A second process is this test program again, with [`ROLE`] in its environment and a socket as
//! its stdin, over which it gets its share of each connection.

mod crowd;
mod deaths;

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, io, thread};

use hvsock_ring::{Bells, End, Side};
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::{message, seqpacket};
use hvsock_testkit::process::Running;
use rustix::io::Errno;

/// Says what this process is to do, if it is a second one.
const ROLE: &str = "HVSOCK_RING_TEST_ROLE";

/// What second processes do. As a test of its own it does nothing.
#[test]
fn role() {
    let Ok(role) = env::var(ROLE) else { return };
    let socket = io::stdin();
    match role.as_str() {
        "write" => deaths::write_until_killed(&socket),
        "read" => deaths::read_until_killed(&socket),
        "echo" => deaths::echo_until_killed(&socket),
        "crowd" => crowd::one_side(&socket),
        other => panic!("{other}"),
    }
}

/// Starts a second process, and gives the socket to it.
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

/// Gives a share of a connection away; the caller is to keep nothing of it.
fn give(socket: &OwnedFd, side: Side, memory: &OwnedFd, bells: &Bells, start: [u64; 2]) {
    let mut bytes = vec![u8::from(side == Side::Second)];
    start
        .iter()
        .for_each(|start| bytes.extend_from_slice(&start.to_ne_bytes()));
    let descriptors = [memory.as_fd(), bells.own.as_fd(), bells.peer.as_fd()];
    patiently(socket, PollFlags::OUT, || {
        message::send(socket, &bytes, &descriptors)
    });
}

/// Sends a word that is not about a connection.
fn say(socket: &impl AsFd) {
    patiently(socket, PollFlags::OUT, || {
        message::send(socket, b"next", &[])
    });
}

/// Waits for such a word, or for the end of the other process.
fn hear(socket: &impl AsFd) {
    let word = patiently(socket, PollFlags::IN, || {
        message::recv(socket, &mut [0; 17])
    });
    assert!(word.len == 4 || word.len == 0);
}

/// Waits where the socket has the other process wait.
fn patiently<T>(
    socket: &impl AsFd,
    flags: PollFlags,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> T {
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let deadline = Instant::now() + Duration::from_secs(60);
                let mut fds = [PollFd::new(socket, flags)];
                assert!(poll::wait(&mut fds, Some(deadline)).unwrap());
            }
            // So many descriptors are on their way that a user may not have more there.
            Err(error) if error.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error()) => {
                thread::sleep(Duration::from_millis(1));
            }
            result => return result.unwrap(),
        }
    }
}

/// Takes what [`give`] gave; `None` for a message without descriptors.
fn take(socket: &impl AsFd) -> Option<End> {
    let mut bytes = [0; 17];
    let received = patiently(socket, PollFlags::IN, || {
        message::recv_with_descriptors(socket, &mut bytes)
    });
    let mut descriptors = received.descriptors.into_iter();
    let memory = descriptors.next()?;
    let bells = Bells {
        own: descriptors.next()?,
        peer: descriptors.next()?,
    };
    let side = [Side::First, Side::Second][usize::from(bytes[0])];
    let start = [1, 9].map(|at| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap()));
    Some(End::open_at(side, memory, bells, start).unwrap())
}
