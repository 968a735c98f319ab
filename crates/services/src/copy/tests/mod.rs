//! Tests of both ends over a socket pair, between two folders.

mod broken;
mod clash;
mod content;
mod destination;
mod entries;
mod hostile;
mod mounts;
mod requested;
mod whole;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use super::*;

/// An end of a socket pair that breaks in both directions after a number of written bytes.
struct BreakingStream {
    stream: UnixStream,
    left: Arc<AtomicI64>,
}

impl BreakingStream {
    fn pair() -> (Self, Self) {
        let (one, other) = UnixStream::pair().unwrap();
        (Self::after(one, i64::MAX), Self::after(other, i64::MAX))
    }

    fn after(stream: UnixStream, bytes: i64) -> Self {
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let left = Arc::new(AtomicI64::new(bytes));
        Self { stream, left }
    }
}

impl Read for BreakingStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for BreakingStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            let _ = self.stream.shutdown(Shutdown::Both);
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let now = bytes.len().min(left as usize);
        let count = self.stream.write(&bytes[..now])?;
        self.left.fetch_sub(count as i64, Ordering::Relaxed);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Link for BreakingStream {
    fn has_input(&mut self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
        Ok(poll(&mut fds, Some(&Timespec::default()))? > 0)
    }
}

/// Records what an observer sees.
#[derive(Default)]
struct Record {
    notes: Vec<Note>,
    total: Option<(u64, u64)>,
    advanced: u64,
}

impl Observer for Record {
    fn total(&mut self, files: u64, bytes: u64) {
        self.total = Some((files, bytes));
    }

    fn advance(&mut self, bytes: u64) {
        self.advanced += bytes;
    }

    fn note(&mut self, note: &Note) {
        self.notes.push(note.clone());
    }
}

type Ended = (Result<CopyCounters, CopyError>, Record);

/// Copies `sources` to `destination`. Returns the results of the sender and of the receiver.
fn copy(sources: &[&Path], destination: &Path, archive: bool) -> (Ended, Ended) {
    copy_over(BreakingStream::pair(), sources, destination, archive)
}

fn copy_over(
    (here, there): (BreakingStream, BreakingStream),
    sources: &[&Path],
    destination: &Path,
    archive: bool,
) -> (Ended, Ended) {
    let sources: Vec<_> = sources.iter().map(Source::new).collect();
    thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let (mut messages, mut record) = (MessageStream::new(here), Record::default());
            let ended = Sender::new(&mut messages, &mut record, true).run(&sources, true);
            (ended, record)
        });
        let (mut messages, mut record) = (MessageStream::new(there), Record::default());
        let destination = Destination::open(destination, false).unwrap();
        let receiver = Receiver::new(&mut messages, &mut record, destination);
        let ended = receiver.archive(archive.then_some(Trust::Full)).run();
        drop(messages);
        (sending.join().unwrap(), (ended, record))
    })
}

/// Copies `sources` with an observer of the sender. Returns the sender's result.
fn send(
    sources: &[&Path],
    destination: &Path,
    observer: &mut (impl Observer + Send),
    recursive: bool,
) -> Result<CopyCounters, CopyError> {
    let sources: Vec<_> = sources.iter().map(Source::new).collect();
    let (here, there) = BreakingStream::pair();
    thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let mut messages = MessageStream::new(here);
            Sender::new(&mut messages, observer, recursive)
                .writer_timeout(Duration::from_millis(200))
                .run(&sources, false)
        });
        let mut messages = MessageStream::new(there);
        let destination = Destination::open(destination, false).unwrap();
        let received = Receiver::new(&mut messages, &mut Unobserved, destination).run();
        drop(messages);
        let sent = sending.join().unwrap();
        assert_eq!(
            sent.as_ref().map(|counters| counters.files).ok(),
            received.map(|counters| counters.files).ok()
        );
        sent
    })
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}
