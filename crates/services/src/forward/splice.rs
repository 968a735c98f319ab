//! One socket made of two: what a near socket says, the far one hears, ends and failures
//! included.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use hvsock::tokio::HvStream;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::records::{self, Decoder, HEAD, Piece, Violation};

/// Bytes moved at once.
const PIECE: usize = records::MOST;

/// How long telling the other half of a failure may take; it may be why there is one.
const TELLING: Duration = Duration::from_secs(1);

/// The connection to the other half, and how it carries the far socket.
#[derive(Debug)]
pub enum Far {
    /// As records, which tell a failure of the far socket from its end.
    Records(HvStream),
    /// As it is: the far socket is the connection itself.
    Plain(HvStream),
}

/// How many bytes went each way.
#[derive(Debug, Default)]
pub struct Moved {
    outward: AtomicU64,
    inward: AtomicU64,
}

impl Moved {
    /// From the near socket to the far one.
    pub fn outward(&self) -> u64 {
        self.outward.load(Ordering::Relaxed)
    }

    /// From the far socket to the near one.
    pub fn inward(&self) -> u64 {
        self.inward.load(Ordering::Relaxed)
    }
}

/// Why not all bytes arrived. Both sockets are to be reset then.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The near socket broke.
    #[error("{0}")]
    Near(#[source] io::Error),
    /// The connection to the other half broke.
    #[error("the connection broke: {0}")]
    Connection(#[source] io::Error),
    /// The far socket broke, as the other half says.
    #[error("the other end broke: {0}")]
    Far(String),
    /// The other half does not keep to the format.
    #[error("the other half sent {0}")]
    Violation(#[from] Violation),
}

/// What both directions have to know of each other.
#[derive(Default)]
struct Shared {
    /// The far socket's bytes have ended.
    ended: AtomicBool,
    /// A record is half written, so nothing can be put behind it.
    amid: AtomicBool,
}

/// Carries bytes both ways until both directions have ended. Each direction's end is passed on as
/// a half-close. After a fault the other half has been told; the near socket is left to the
/// caller, who resets it.
pub async fn splice<R, W>(
    mut near_read: R,
    mut near_write: W,
    far: Far,
    moved: &Moved,
) -> Result<(), Fault>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut stream, records) = match far {
        Far::Records(stream) => (stream, true),
        Far::Plain(stream) => (stream, false),
    };
    let shared = Shared::default();
    let result = {
        let (far_read, far_write) = stream.split();
        let mut outward = pin!(async {
            match records {
                true => record(&mut near_read, far_write, &shared, moved).await,
                false => bear(&mut near_read, far_write, moved).await,
            }
        });
        let mut inward = pin!(async {
            match records {
                true => unwrap(far_read, &mut near_write, &shared, moved).await,
                false => bring(far_read, &mut near_write, moved).await,
            }
        });
        let (mut sent, mut received) = (false, false);
        poll_fn(|context| {
            // First what came: a connection that broke may have left something.
            if !received && let Poll::Ready(done) = inward.as_mut().poll(context) {
                done?;
                received = true;
            }
            if !sent && let Poll::Ready(done) = outward.as_mut().poll(context) {
                done?;
                sent = true;
            }
            let ended = received || shared.ended.load(Ordering::Relaxed);
            match (sent, ended) {
                (true, true) => Poll::Ready(Ok(())),
                // It has heard the end of one direction and goes without that of the other.
                (false, _) if records && received => Poll::Ready(Err(gone())),
                _ => Poll::Pending,
            }
        })
        .await
    };
    if let Err(fault) = &result {
        if records && !shared.amid.load(Ordering::Relaxed) {
            let reset = records::reset(&fault.to_string());
            let _ = tokio::time::timeout(TELLING, stream.write_all(&reset)).await;
        }
        stream.abandon();
    }
    result
}

fn gone() -> Fault {
    let text = "the other half is gone";
    Fault::Connection(io::Error::new(io::ErrorKind::ConnectionReset, text))
}

/// The near socket's bytes as records.
async fn record(
    mut near: impl AsyncRead + Unpin,
    mut far: impl AsyncWrite + Unpin,
    shared: &Shared,
    moved: &Moved,
) -> Result<(), Fault> {
    let mut buffer = vec![0; HEAD + PIECE];
    loop {
        let count = near.read(&mut buffer[HEAD..]).await.map_err(Fault::Near)?;
        let head = match count {
            0 => records::END,
            count => records::head(count),
        };
        buffer[..HEAD].copy_from_slice(&head);
        shared.amid.store(true, Ordering::Relaxed);
        let written = far.write_all(&buffer[..HEAD + count]).await;
        written.map_err(Fault::Connection)?;
        shared.amid.store(false, Ordering::Relaxed);
        if count == 0 {
            return Ok(());
        }
        moved.outward.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// Records to the near socket, and then until the connection ends: whoever still sends has to
/// know that nobody is there.
async fn unwrap(
    mut far: impl AsyncRead + Unpin,
    mut near: impl AsyncWrite + Unpin,
    shared: &Shared,
    moved: &Moved,
) -> Result<(), Fault> {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; PIECE];
    loop {
        let count = far.read(&mut buffer).await.map_err(Fault::Connection)?;
        if count == 0 {
            return match decoder.ended() {
                true => Ok(()),
                false => Err(gone()),
            };
        }
        let mut input = &buffer[..count];
        while let Some(piece) = decoder.next(&mut input)? {
            match piece {
                Piece::Data(data) => {
                    near.write_all(data).await.map_err(Fault::Near)?;
                    moved.inward.fetch_add(data.len() as u64, Ordering::Relaxed);
                }
                Piece::End => {
                    near.shutdown().await.map_err(Fault::Near)?;
                    shared.ended.store(true, Ordering::Relaxed);
                }
                Piece::Reset(reason) => return Err(Fault::Far(reason)),
            }
        }
        if !decoder.ended() {
            near.flush().await.map_err(Fault::Near)?;
        }
    }
}

/// The near socket's bytes as they are.
async fn bear(
    mut near: impl AsyncRead + Unpin,
    mut far: impl AsyncWrite + Unpin,
    moved: &Moved,
) -> Result<(), Fault> {
    let mut buffer = vec![0; PIECE];
    loop {
        let count = near.read(&mut buffer).await.map_err(Fault::Near)?;
        if count == 0 {
            return far.shutdown().await.map_err(Fault::Connection);
        }
        let written = far.write_all(&buffer[..count]).await;
        written.map_err(Fault::Connection)?;
        moved.outward.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// The connection's bytes as they are.
async fn bring(
    mut far: impl AsyncRead + Unpin,
    mut near: impl AsyncWrite + Unpin,
    moved: &Moved,
) -> Result<(), Fault> {
    let mut buffer = vec![0; PIECE];
    loop {
        let count = far.read(&mut buffer).await.map_err(Fault::Connection)?;
        if count == 0 {
            return near.shutdown().await.map_err(Fault::Near);
        }
        near.write_all(&buffer[..count])
            .await
            .map_err(Fault::Near)?;
        near.flush().await.map_err(Fault::Near)?;
        moved.inward.fetch_add(count as u64, Ordering::Relaxed);
    }
}
