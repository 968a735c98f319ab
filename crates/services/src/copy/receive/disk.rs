//! Writes received content to the disk; for large files, in parallel with receiving.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Scope};

use rustix::io::{Errno, pwrite};

use super::super::BUFFER;

/// The smallest file that gets a writer thread, in bytes. For smaller files, starting a thread
/// takes longer than it saves.
const LARGE: u64 = 8 << 20;

/// The most buffers in flight to the writer thread.
const BUFFERS: usize = 4;

/// Writes the content of a file, in order.
pub(super) trait Disk {
    /// Returns a buffer to be filled.
    fn take_buffer(&mut self) -> Vec<u8>;
    /// Takes the buffer back, with `length` bytes that belong at `offset`.
    fn write(&mut self, offset: u64, buffer: Vec<u8>, length: usize);
    /// The first error. Nothing is written after it.
    fn error(&self) -> Option<&io::Error>;
}

/// A pool of buffers, reused for all files.
#[derive(Debug, Default)]
pub(super) struct Buffers(Vec<Vec<u8>>);

impl Buffers {
    fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_else(|| vec![0; BUFFER])
    }
}

/// Runs `content`, which writes to a file or discards its bytes. Returns its result and the first
/// write error.
pub(super) fn write<T>(
    file: Option<BorrowedFd<'_>>,
    size: u64,
    buffers: &mut Buffers,
    content: impl FnOnce(&mut dyn Disk) -> T,
) -> (T, Option<io::Error>) {
    let failure = OnceLock::new();
    let result = match file {
        Some(file) if size >= LARGE => thread::scope(|scope| {
            match ThreadWriter::start(scope, file, &failure, buffers) {
                Ok(mut writer) => content(&mut writer),
                // Without a thread, write directly.
                Err(_) => content(&mut DirectWriter::new(Some(file), &failure, buffers)),
            }
        }),
        file => content(&mut DirectWriter::new(file, &failure, buffers)),
    };
    (result, failure.into_inner())
}

/// Writes in the calling thread.
struct DirectWriter<'a> {
    file: Option<BorrowedFd<'a>>,
    failure: &'a OnceLock<io::Error>,
    buffers: &'a mut Buffers,
}

impl<'a> DirectWriter<'a> {
    fn new(
        file: Option<BorrowedFd<'a>>,
        failure: &'a OnceLock<io::Error>,
        buffers: &'a mut Buffers,
    ) -> Self {
        Self {
            file,
            failure,
            buffers,
        }
    }
}

impl Disk for DirectWriter<'_> {
    fn take_buffer(&mut self) -> Vec<u8> {
        self.buffers.take()
    }

    fn write(&mut self, offset: u64, buffer: Vec<u8>, length: usize) {
        if let Some(file) = self.file {
            write_all(file, offset, &buffer[..length], self.failure);
        }
        self.buffers.0.push(buffer);
    }

    fn error(&self) -> Option<&io::Error> {
        self.failure.get()
    }
}

/// Passes everything to a writer thread. Writing to a new file takes longer than receiving it, so
/// both have to run in parallel.
struct ThreadWriter<'a> {
    full: SyncSender<(u64, Vec<u8>, usize)>,
    empty: Receiver<Vec<u8>>,
    failure: &'a OnceLock<io::Error>,
    /// Buffers that were not used yet.
    fresh: Vec<Vec<u8>>,
}

impl<'a> ThreadWriter<'a> {
    fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        file: BorrowedFd<'scope>,
        failure: &'scope OnceLock<io::Error>,
        buffers: &mut Buffers,
    ) -> io::Result<Self>
    where
        'scope: 'a,
    {
        let (full, to_write) = sync_channel::<(u64, Vec<u8>, usize)>(BUFFERS);
        let (written, empty) = sync_channel(BUFFERS);
        let thread = thread::Builder::new().name("copy to disk".into());
        thread.spawn_scoped(scope, move || {
            for (offset, buffer, length) in to_write {
                write_all(file, offset, &buffer[..length], failure);
                // The receiver is gone at the end.
                let _ = written.send(buffer);
            }
        })?;
        Ok(Self {
            full,
            empty,
            failure,
            fresh: (0..BUFFERS).map(|_| buffers.take()).collect(),
        })
    }
}

impl Disk for ThreadWriter<'_> {
    fn take_buffer(&mut self) -> Vec<u8> {
        let fresh = self.fresh.pop();
        // The thread returns every buffer that it gets.
        fresh.unwrap_or_else(|| self.empty.recv().unwrap_or_else(|_| vec![0; BUFFER]))
    }

    fn write(&mut self, offset: u64, buffer: Vec<u8>, length: usize) {
        if self.full.send((offset, buffer, length)).is_err() {
            let _ = self.failure.set(io::ErrorKind::Other.into());
        }
    }

    fn error(&self) -> Option<&io::Error> {
        self.failure.get()
    }
}

/// Writes all bytes, unless there was an error before.
pub(super) fn write_all(
    file: impl AsFd,
    mut offset: u64,
    mut bytes: &[u8],
    failure: &OnceLock<io::Error>,
) {
    while !bytes.is_empty() && failure.get().is_none() {
        match pwrite(&file, bytes, offset) {
            Ok(0) => {
                let _ = failure.set(io::ErrorKind::WriteZero.into());
            }
            Ok(count) => {
                offset += count as u64;
                bytes = &bytes[count..];
            }
            Err(Errno::INTR) => {}
            Err(error) => {
                let _ = failure.set(error.into());
            }
        }
    }
}
