//! A connection for a program that knows nothing of hvsock, where its bytes do not go through a
//! descriptor already: threads of this process move them.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hvsock_sys::poll::PollFlags;

use crate::{HvStream, wait};

/// Bytes moved at once.
const PIECE: usize = 64 * 1024;
/// How often a thread whose program writes no more looks whether the other thread is done.
const LOOK_UP: Duration = Duration::from_millis(100);

/// Moves the connection's bytes to and from a socket, whose other end this returns.
pub(crate) fn pump(stream: HvStream) -> io::Result<OwnedFd> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    let (own, theirs) = UnixStream::pair()?;
    let done = Arc::new(AtomicBool::new(false));
    let (to, from) = (stream.try_clone()?, stream);
    let (inward, outward) = (own.try_clone()?, own);
    let inward_done = Arc::clone(&done);
    thread::Builder::new()
        .name("hvsock-plain-in".into())
        .spawn(move || {
            bring(&from, &inward);
            inward_done.store(true, Ordering::Release);
        })?;
    thread::Builder::new()
        .name("hvsock-plain-out".into())
        .spawn(move || take(&outward, &to, &done))?;
    Ok(theirs.into())
}

/// From the connection to the program.
fn bring(mut from: &HvStream, mut to: &UnixStream) {
    let mut buffer = vec![0; PIECE];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                if to.write_all(&buffer[..count]).is_err() {
                    let _ = from.shutdown(Shutdown::Read);
                    return;
                }
            }
            // The program cannot be told more than that it is over.
            Err(_) => {
                let _ = to.shutdown(Shutdown::Both);
                return;
            }
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// From the program to the connection.
fn take(mut from: &UnixStream, mut to: &HvStream, done: &AtomicBool) {
    let mut buffer = vec![0; PIECE];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                if to.write_all(&buffer[..count]).is_err() {
                    // The program's next write fails.
                    let _ = from.shutdown(Shutdown::Read);
                    return;
                }
            }
            Err(_) => break,
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    // A program that is gone reads no more, either, which the other end is to know before it
    // has written what nobody will read.
    while !done.load(Ordering::Acquire) {
        let slice = Instant::now() + LOOK_UP;
        match wait::ready(from, PollFlags::empty(), Some(slice)) {
            Ok(false) => {}
            Ok(true) | Err(_) => {
                let _ = to.shutdown(Shutdown::Read);
                return;
            }
        }
    }
}
