//! Writes output in a thread of its own: a reader that stops blocks only that thread, while signals
//! are still handled.

use std::io::{self, Write as _};
use std::thread;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::os::stdio;

/// The capacity of the queue, in chunks.
const CAPACITY: usize = 2;

/// The destination of a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    Stdout,
    Stderr,
}

/// One chunk of output.
pub(super) type Chunk = (To, Bytes);

/// A permit to queue one chunk.
pub(super) type Permit = mpsc::OwnedPermit<Chunk>;

/// The queue of output and its thread.
pub(super) struct Printer {
    chunks: mpsc::Sender<Chunk>,
    done: oneshot::Receiver<io::Result<()>>,
}

impl Printer {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let (chunks, queued) = mpsc::channel(CAPACITY);
        let (result, done) = oneshot::channel();
        thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || result.send(print(queued)))?;
        Ok(Self { chunks, done })
    }

    /// Waits for a free slot in the queue (backpressure).
    ///
    /// # Errors
    ///
    /// Fails if a write has failed.
    pub(super) fn permit(&self) -> impl Future<Output = Result<Permit, Broken>> + use<> {
        let chunks = self.chunks.clone();
        async { chunks.reserve_owned().await.map_err(|_| Broken) }
    }

    /// Waits until all chunks are written.
    pub(super) async fn finish(self) -> io::Result<()> {
        drop(self.chunks);
        self.done.await.unwrap_or(Ok(()))
    }
}

/// A write has failed. [`Printer::finish`] returns the error.
#[derive(Debug)]
pub(super) struct Broken;

fn print(mut chunks: mpsc::Receiver<Chunk>) -> io::Result<()> {
    let (mut stdout, mut stderr) = (stdio::output()?, stdio::error_output()?);
    while let Some((to, bytes)) = chunks.blocking_recv() {
        match to {
            To::Stdout => stdout.write_all(&bytes)?,
            // A closed standard error loses its output only, as for a local program.
            To::Stderr => match stderr.write_all(&bytes) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                written => written?,
            },
        }
    }
    Ok(())
}
