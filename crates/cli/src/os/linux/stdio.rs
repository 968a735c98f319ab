//! Unbuffered standard input and output, and the wait for the thread that sends the input.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use hvsock::{HvStream, Transport};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::sync::mpsc;

/// Makes a standard stream that was closed when the program was started fail. To be called first in `main`.
pub fn prepare() {
    hvsock_sys::standard_streams::fail_if_closed();
}

/// Standard input without the buffer of the standard library.
pub fn input() -> io::Result<impl Read> {
    unbuffered(io::stdin().as_fd()).map(Blocking)
}

/// Standard output without the buffer of the standard library.
pub fn output() -> io::Result<impl Write> {
    output_file().map(Blocking)
}

/// Standard error without the buffer of the standard library.
pub fn error_output() -> io::Result<impl Write> {
    unbuffered(io::stderr().as_fd()).map(Blocking)
}

/// Writes bytes to standard output. The standard library's own `Stdout` reports success where a write
/// fails with `EBADF`.
pub fn print(bytes: &[u8]) -> io::Result<()> {
    output()?.write_all(bytes)
}

/// Writes text with styles to standard output.
pub fn print_styled(text: &str) -> io::Result<()> {
    print(text.as_bytes())
}

/// Standard output as a file.
pub fn output_file() -> io::Result<File> {
    unbuffered(io::stdout().as_fd())
}

fn unbuffered(fd: impl AsFd) -> io::Result<File> {
    let fd: OwnedFd = fd.as_fd().try_clone_to_owned()?;
    Ok(fd.into())
}

/// A file whose calls block. Another process that has the same terminal or pipe may have set it to
/// non-blocking mode: that it is not ready then is no failure.
struct Blocking(File);

impl Blocking {
    fn retry(
        &mut self,
        events: PollFlags,
        mut call: impl FnMut(&mut File) -> io::Result<usize>,
    ) -> io::Result<usize> {
        loop {
            match call(&mut self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match poll(&mut [PollFd::new(&self.0, events)], None) {
                        Ok(_) | Err(Errno::INTR) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                }
                result => return result,
            }
        }
    }
}

impl Read for Blocking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.retry(PollFlags::IN, |file| file.read(buffer))
    }
}

impl Write for Blocking {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.retry(PollFlags::OUT, |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The size of a chunk of standard input, in bytes.
const CHUNK: usize = 64 * 1024;

/// The chunks of standard input, read by a thread that ends with the process. A failure is the last
/// one; only the end of the input ends the channel without one.
pub fn chunks() -> mpsc::Receiver<io::Result<Bytes>> {
    let (send, chunks) = mpsc::channel(1);
    let failed = send.clone();
    let read = move || {
        if let Err(error) = read_chunks(&send) {
            // The receiver may be gone.
            let _ = send.blocking_send(Err(error));
        }
    };
    let started = thread::Builder::new().name("stdin".to_owned()).spawn(read);
    if let Err(error) = started {
        // The channel is empty.
        let _ = failed.try_send(Err(error));
    }
    chunks
}

fn read_chunks(send: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let mut stdin = input()?;
    let mut buffer = vec![0; CHUNK];
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                let chunk = Bytes::copy_from_slice(&buffer[..count]);
                if send.blocking_send(Ok(chunk)).is_err() {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Resets a connection, so that its peer does not take a failure here for the end of the data.
pub fn reset(stream: &HvStream) {
    stream.reset();
}

/// Closes standard output, so that its reader sees the end while this command continues.
pub fn end_output() -> Result<()> {
    let null = File::open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdout(null).context("cannot close the output")
}

/// The sending thread drops this when it is done.
pub struct Sending {
    _end: UnixStream,
}

/// Becomes readable when the [`Sending`] is dropped.
pub struct Sent(UnixStream);

/// A connected pair of both.
pub fn sending() -> io::Result<(Sending, Sent)> {
    let (end, dropped) = UnixStream::pair()?;
    Ok((Sending { _end: end }, Sent(dropped)))
}

/// The poll interval for AF_VSOCK and shared memory, whose descriptors do not report that the peer
/// reads no more.
const POLL_INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

impl Sent {
    /// Waits after the peer's half-close until all input is sent or the peer reads no more.
    pub fn wait(&self, mut stream: &HvStream) -> io::Result<()> {
        let interval = (stream.transport() != Transport::Descriptor).then_some(&POLL_INTERVAL);
        loop {
            let mut fds = [
                PollFd::new(&self.0, PollFlags::IN),
                // No events: POLLERR and POLLHUP are always reported.
                PollFd::new(stream, PollFlags::empty()),
            ];
            match poll(&mut fds, interval) {
                // An empty write fails when the peer reads no more.
                Ok(0) if stream.write(&[]).is_err() => return Ok(()),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            if fds.iter().any(|fd| !fd.revents().is_empty()) {
                return Ok(());
            }
        }
    }
}
