//! Writing what has come, for large files while more of it comes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Scope};

use rustix::io::{Errno, pwrite};

use super::super::CHUNK;

/// From this size on a thread of its own writes a file: below, to start one takes longer.
const LARGE: u64 = 8 << 20;

/// Chunks that are on their way to the disk, or wait to be.
const CHUNKS: usize = 4;

/// Takes a file's content, in order.
pub(super) trait Disk {
    /// A chunk of memory to be filled.
    fn room(&mut self) -> Vec<u8>;
    /// Takes it back with so many bytes that belong at this offset.
    fn put(&mut self, offset: u64, chunk: Vec<u8>, length: usize);
    /// What has gone wrong. Nothing is written after it.
    fn trouble(&self) -> Option<&io::Error>;
}

/// Memory for content on its way, for one file after the other.
#[derive(Debug, Default)]
pub(super) struct Chunks(Vec<Vec<u8>>);

impl Chunks {
    fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_else(|| vec![0; CHUNK])
    }
}

/// Has `content` put bytes to a file, or nowhere; what it gave, and what went wrong with them.
pub(super) fn write<T>(
    file: Option<BorrowedFd<'_>>,
    size: u64,
    chunks: &mut Chunks,
    content: impl FnOnce(&mut dyn Disk) -> T,
) -> (T, Option<io::Error>) {
    let trouble = OnceLock::new();
    let given = match file {
        Some(file) if size >= LARGE => thread::scope(|scope| {
            match Beside::start(scope, file, &trouble, chunks) {
                Ok(mut beside) => content(&mut beside),
                // It goes without, too.
                Err(_) => content(&mut Directly::new(Some(file), &trouble, chunks)),
            }
        }),
        file => content(&mut Directly::new(file, &trouble, chunks)),
    };
    (given, trouble.into_inner())
}

/// Writes at once.
struct Directly<'a> {
    file: Option<BorrowedFd<'a>>,
    trouble: &'a OnceLock<io::Error>,
    chunks: &'a mut Chunks,
}

impl<'a> Directly<'a> {
    fn new(
        file: Option<BorrowedFd<'a>>,
        trouble: &'a OnceLock<io::Error>,
        chunks: &'a mut Chunks,
    ) -> Self {
        Self {
            file,
            trouble,
            chunks,
        }
    }
}

impl Disk for Directly<'_> {
    fn room(&mut self) -> Vec<u8> {
        self.chunks.take()
    }

    fn put(&mut self, offset: u64, chunk: Vec<u8>, length: usize) {
        if let Some(file) = self.file {
            write_all(file, offset, &chunk[..length], self.trouble);
        }
        self.chunks.0.push(chunk);
    }

    fn trouble(&self) -> Option<&io::Error> {
        self.trouble.get()
    }
}

/// Hands everything to a thread. Writing to a new file takes longer than receiving it, so the two
/// must not take turns.
struct Beside<'a> {
    full: SyncSender<(u64, Vec<u8>, usize)>,
    empty: Receiver<Vec<u8>>,
    trouble: &'a OnceLock<io::Error>,
    /// Chunks that were never handed over yet.
    fresh: Vec<Vec<u8>>,
}

impl<'a> Beside<'a> {
    fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        file: BorrowedFd<'scope>,
        trouble: &'scope OnceLock<io::Error>,
        chunks: &mut Chunks,
    ) -> io::Result<Self>
    where
        'scope: 'a,
    {
        let (full, to_write) = sync_channel::<(u64, Vec<u8>, usize)>(CHUNKS);
        let (written, empty) = sync_channel(CHUNKS);
        let thread = thread::Builder::new().name("copy to disk".into());
        thread.spawn_scoped(scope, move || {
            for (offset, chunk, length) in to_write {
                write_all(file, offset, &chunk[..length], trouble);
                // Nobody takes it any more at the end.
                let _ = written.send(chunk);
            }
        })?;
        Ok(Self {
            full,
            empty,
            trouble,
            fresh: (0..CHUNKS).map(|_| chunks.take()).collect(),
        })
    }
}

impl Disk for Beside<'_> {
    fn room(&mut self) -> Vec<u8> {
        let fresh = self.fresh.pop();
        // The thread gives back all that it gets.
        fresh.unwrap_or_else(|| self.empty.recv().unwrap_or_else(|_| vec![0; CHUNK]))
    }

    fn put(&mut self, offset: u64, chunk: Vec<u8>, length: usize) {
        if self.full.send((offset, chunk, length)).is_err() {
            let _ = self.trouble.set(io::ErrorKind::Other.into());
        }
    }

    fn trouble(&self) -> Option<&io::Error> {
        self.trouble.get()
    }
}

/// Writes all of it, unless something went wrong before.
fn write_all(file: impl AsFd, mut offset: u64, mut bytes: &[u8], trouble: &OnceLock<io::Error>) {
    while !bytes.is_empty() && trouble.get().is_none() {
        match pwrite(&file, bytes, offset) {
            Ok(0) => {
                let _ = trouble.set(io::ErrorKind::WriteZero.into());
            }
            Ok(count) => {
                offset += count as u64;
                bytes = &bytes[count..];
            }
            Err(Errno::INTR) => {}
            Err(error) => {
                let _ = trouble.set(error.into());
            }
        }
    }
}
