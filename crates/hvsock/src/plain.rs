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

/// Why bytes go no further.
enum Stopped {
    /// The source has ended them.
    End,
    /// The source failed.
    Source,
    /// The sink takes no more.
    Sink,
}

fn carry(mut from: impl Read, mut to: impl Write) -> Stopped {
    let mut buffer = vec![0; PIECE];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Stopped::End,
            Ok(count) => {
                if to.write_all(&buffer[..count]).is_err() {
                    return Stopped::Sink;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Stopped::Source,
        }
    }
}

/// From the connection to the program.
fn bring(from: &HvStream, to: &UnixStream) {
    // Nothing can be done about an error: it is over for both by then.
    let _ = match carry(from, to) {
        Stopped::End => to.shutdown(Shutdown::Write),
        // The program cannot be told more than that it is over.
        Stopped::Source => to.shutdown(Shutdown::Both),
        Stopped::Sink => from.shutdown(Shutdown::Read),
    };
}

/// From the program to the connection.
fn take(from: &UnixStream, to: &HvStream, done: &AtomicBool) {
    match carry(from, to) {
        Stopped::End => {
            let _ = to.shutdown(Shutdown::Write);
        }
        // It closed with data unread, which is no clean end for who wrote that.
        Stopped::Source => return to.stream().abandon(),
        // The program's next write fails.
        Stopped::Sink => {
            let _ = from.shutdown(Shutdown::Read);
            return;
        }
    }
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
