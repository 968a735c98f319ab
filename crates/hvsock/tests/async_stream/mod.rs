//! Tokio streams for the conformance suite. A runtime that all cases share drives each operation.

use std::io;
use std::pin::Pin;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hvsock::tokio::{HvStream, OwnedReadHalf, OwnedWriteHalf};
use hvsock_testkit::conformance::{LONGEST_WAIT, Ready, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));

/// Runs a future on the shared runtime, up to `limit`.
pub fn bounded<T>(limit: Duration, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    RUNTIME.block_on(async {
        match tokio::time::timeout(limit, future).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    })
}

/// The halves of a stream, so that one thread can read while another writes.
pub struct AsyncStream {
    read: Mutex<OwnedReadHalf>,
    write: Mutex<OwnedWriteHalf>,
    mode: Mutex<Mode>,
}

#[derive(Clone, Copy)]
struct Mode {
    nonblocking: bool,
    read_limit: Duration,
    write_limit: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsyncStream {
    pub fn new(stream: HvStream) -> Self {
        let (read, write) = stream.into_split();
        let limit = LONGEST_WAIT;
        let mode = Mode {
            nonblocking: false,
            read_limit: limit,
            write_limit: limit,
        };
        Self {
            read: Mutex::new(read),
            write: Mutex::new(write),
            mode: Mutex::new(mode),
        }
    }

    fn mode(&self) -> Mode {
        *lock(&self.mode)
    }

    pub fn connection_id(&self) -> u64 {
        let read = lock(&self.read);
        let stream: &HvStream = (*read).as_ref();
        stream.connection_id()
    }
}

impl Stream for AsyncStream {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (mut read, mode) = (lock(&self.read), self.mode());
        match mode.nonblocking {
            true => (*read).as_ref().try_read(buffer),
            false => bounded(mode.read_limit, read.read(buffer)),
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let (mut write, mode) = (lock(&self.write), self.mode());
        match mode.nonblocking {
            true => (*write).as_ref().try_write(bytes),
            false => bounded(mode.write_limit, write.write(bytes)),
        }
    }

    fn shutdown_write(&self) -> io::Result<()> {
        RUNTIME.block_on(lock(&self.write).shutdown())
    }

    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        lock(&self.mode).read_limit = timeout;
        Ok(())
    }

    fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        lock(&self.mode).write_limit = timeout;
        Ok(())
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        lock(&self.mode).nonblocking = nonblocking;
        Ok(())
    }

    fn wait(&self, interest: Ready, timeout: Duration) -> io::Result<Ready> {
        let (read, write) = (lock(&self.read), lock(&self.write));
        let (reader, writer): (&HvStream, &HvStream) = ((*read).as_ref(), (*write).as_ref());
        let ready = bounded(timeout, async {
            tokio::select! {
                result = reader.readable(), if interest.read => result.map(|()| Ready::READ),
                result = writer.writable(), if interest.write => result.map(|()| Ready::WRITE),
            }
        });
        let now = |future| match bounded(Duration::from_millis(1), future) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(false),
            Err(error) => Err(error),
        };
        match ready {
            Ok(_) => Ok(Ready {
                read: interest.read && now(Box::pin(reader.readable()) as Waiting<'_>)?,
                write: interest.write && now(Box::pin(writer.writable()))?,
            }),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(Ready::NONE),
            Err(error) => Err(error),
        }
    }
}

type Waiting<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + 'a>>;
