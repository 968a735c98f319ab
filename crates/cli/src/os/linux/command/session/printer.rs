//! Output in a thread of its own: whoever reads ours may stop for as long as he likes, and signals
//! must be heard meanwhile.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::thread;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

/// Pieces that wait.
const PIECES: usize = 2;

/// Where a piece goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum To {
    Stdout,
    Stderr,
}

/// What is printed at once.
pub(super) type Piece = (To, Bytes);

/// Room for one piece.
pub(super) type Room = mpsc::OwnedPermit<Piece>;

/// What takes output.
pub(super) struct Printer {
    pieces: mpsc::Sender<Piece>,
    done: oneshot::Receiver<io::Result<()>>,
}

impl Printer {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let (pieces, printed) = mpsc::channel(PIECES);
        let (tell, done) = oneshot::channel();
        thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || tell.send(print(printed)))?;
        Ok(Self { pieces, done })
    }

    /// Waits for room for one more piece. Fails if nothing can be printed any more.
    pub(super) fn room(&self) -> impl Future<Output = Result<Room, Broken>> + use<> {
        let pieces = self.pieces.clone();
        async { pieces.reserve_owned().await.map_err(|_| Broken) }
    }

    /// Waits until all is printed.
    pub(super) async fn finish(self) -> io::Result<()> {
        drop(self.pieces);
        self.done.await.unwrap_or(Ok(()))
    }
}

/// Nothing can be printed any more; [`Printer::finish`] says why.
#[derive(Debug)]
pub(super) struct Broken;

fn print(mut pieces: mpsc::Receiver<Piece>) -> io::Result<()> {
    let unbuffered = |fd: io::Result<std::os::fd::OwnedFd>| fd.map(File::from);
    let mut stdout = unbuffered(io::stdout().as_fd().try_clone_to_owned())?;
    let mut stderr = unbuffered(io::stderr().as_fd().try_clone_to_owned())?;
    while let Some((to, bytes)) = pieces.blocking_recv() {
        match to {
            To::Stdout => stdout.write_all(&bytes)?,
            // As with a program here: what nobody hears is lost, and the rest goes on.
            To::Stderr => match stderr.write_all(&bytes) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                written => written?,
            },
        }
    }
    Ok(())
}
