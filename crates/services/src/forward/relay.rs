//! Relays bytes between a local socket and a remote one, with half-close and failures in both directions.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use hvsock::tokio::HvStream;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::records::{self, Decoder, HEAD, Record, Violation};

/// The buffer size for each direction, in bytes.
const BUFFER: usize = records::MAX_RECORD;

/// Timeout for bytes that were received before a connection broke.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long reporting a failure to the other end may take: the connection itself may be the failure.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// The connection to the other end, and its format of the remote socket's bytes.
#[derive(Debug)]
pub enum Remote {
    /// As records, which distinguish a failure of the remote socket from its end.
    Records(HvStream),
    /// As raw bytes: the connection is the remote socket.
    Raw(HvStream),
}

/// The number of bytes in each direction.
#[derive(Debug, Default)]
pub struct Transferred {
    outward: AtomicU64,
    inward: AtomicU64,
}

impl Transferred {
    /// From the local socket to the remote one.
    pub fn outward(&self) -> u64 {
        self.outward.load(Ordering::Relaxed)
    }

    /// From the remote socket to the local one.
    pub fn inward(&self) -> u64 {
        self.inward.load(Ordering::Relaxed)
    }
}

/// Why a relay ended early. Both sockets are reset then.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The local socket broke.
    #[error("{0}")]
    Local(io::Error),
    /// The connection to the other end broke.
    #[error("the connection broke: {0}")]
    Connection(io::Error),
    /// The other end reports that the remote socket broke.
    #[error("the remote socket broke: {0}")]
    Remote(String),
    /// Protocol violation by the other end.
    #[error("protocol violation: the other end sent {0}")]
    Violation(Violation),
}

impl From<Violation> for Fault {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// State shared by the two directions.
#[derive(Default)]
struct Shared {
    /// The remote socket's bytes have ended.
    ended: AtomicBool,
    /// A record is partly written, so no other record can follow.
    mid_record: AtomicBool,
}

/// Relays bytes in both directions until both have ended. The end of a direction is passed on as a
/// half-close. After a fault the other end has been informed; the caller resets the local socket.
///
/// # Errors
///
/// [`Fault`] if the local socket, the connection or the remote socket breaks.
pub async fn relay<R, W>(
    mut local_read: R,
    mut local_write: W,
    remote: Remote,
    transferred: &Transferred,
) -> Result<(), Fault>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut stream, records) = match remote {
        Remote::Records(stream) => (stream, true),
        Remote::Raw(stream) => (stream, false),
    };
    let shared = Shared::default();
    let result = {
        let (remote_read, remote_write) = stream.split();
        let mut outward = pin!(async {
            match records {
                true => send_records(&mut local_read, remote_write, &shared, transferred).await,
                false => {
                    let count = &transferred.outward;
                    copy(
                        &mut local_read,
                        remote_write,
                        count,
                        Fault::Local,
                        Fault::Connection,
                    )
                    .await
                }
            }
        });
        let mut inward = pin!(async {
            match records {
                true => receive_records(remote_read, &mut local_write, &shared, transferred).await,
                false => {
                    let count = &transferred.inward;
                    copy(
                        remote_read,
                        &mut local_write,
                        count,
                        Fault::Connection,
                        Fault::Local,
                    )
                    .await
                }
            }
        });
        let (mut sent, mut received) = (false, false);
        let mut result = poll_fn(|context| {
            // Receive first: a connection that broke may still hold received bytes.
            if !received && let Poll::Ready(done) = inward.as_mut().poll(context) {
                received = true;
                done?;
            }
            if !sent && let Poll::Ready(done) = outward.as_mut().poll(context) {
                done?;
                sent = true;
            }
            let ended = received || shared.ended.load(Ordering::Relaxed);
            match (sent, ended) {
                (true, true) => Poll::Ready(Ok(())),
                // The connection ended while this direction was open: the other end will never
                // report its end.
                (false, _) if records && received => Poll::Ready(Err(gone())),
                _ => Poll::Pending,
            }
        })
        .await;
        if !received && matches!(result, Err(Fault::Connection(_))) {
            // The failed write says nothing of what the other end had sent before, perhaps its reason.
            let drained = tokio::time::timeout(DRAIN_TIMEOUT, inward).await;
            if let Ok(Err(reason @ Fault::Remote(_))) = drained {
                result = Err(reason);
            }
        }
        result
    };
    if let Err(fault) = &result {
        let mut reported = false;
        if records && !shared.mid_record.load(Ordering::Relaxed) {
            let reset = records::reset(&fault.to_string());
            let report = async {
                stream.write_all(&reset).await?;
                if matches!(fault, Fault::Remote(_)) {
                    return Ok(false);
                }
                stream.shutdown().await?;
                let mut rest = [0; 4096];
                while stream.read(&mut rest).await? > 0 {}
                Ok::<_, io::Error>(true)
            };
            let report = tokio::time::timeout(REPORT_TIMEOUT, report).await;
            reported = matches!(report, Ok(Ok(true)));
        }
        // A reset would overtake the record. If the other end's data has ended, a close is enough.
        if !reported {
            stream.reset();
        }
    }
    result
}

fn gone() -> Fault {
    let text = "the other end is gone";
    Fault::Connection(io::Error::new(io::ErrorKind::ConnectionReset, text))
}

/// Sends the local socket's bytes as records.
async fn send_records(
    mut local: impl AsyncRead + Unpin,
    mut remote: impl AsyncWrite + Unpin,
    shared: &Shared,
    transferred: &Transferred,
) -> Result<(), Fault> {
    let mut buffer = vec![0; HEAD + BUFFER];
    loop {
        let count = local
            .read(&mut buffer[HEAD..])
            .await
            .map_err(Fault::Local)?;
        let head = match count {
            0 => records::END,
            count => records::head(count),
        };
        buffer[..HEAD].copy_from_slice(&head);
        shared.mid_record.store(true, Ordering::Relaxed);
        let written = remote.write_all(&buffer[..HEAD + count]).await;
        written.map_err(Fault::Connection)?;
        shared.mid_record.store(false, Ordering::Relaxed);
        if count == 0 {
            return Ok(());
        }
        transferred
            .outward
            .fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// Writes received records to the local socket, then reads until the connection ends: a sender that
/// is still active must learn that the other end is gone.
async fn receive_records(
    mut remote: impl AsyncRead + Unpin,
    mut local: impl AsyncWrite + Unpin,
    shared: &Shared,
    transferred: &Transferred,
) -> Result<(), Fault> {
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = remote.read(&mut buffer).await.map_err(Fault::Connection)?;
        if count == 0 {
            return match decoder.ended() {
                true => Ok(()),
                false => Err(gone()),
            };
        }
        let mut input = &buffer[..count];
        while let Some(record) = decoder.next(&mut input)? {
            match record {
                Record::Data(data) => {
                    local.write_all(data).await.map_err(Fault::Local)?;
                    transferred
                        .inward
                        .fetch_add(data.len() as u64, Ordering::Relaxed);
                }
                Record::End => {
                    local.shutdown().await.map_err(Fault::Local)?;
                    shared.ended.store(true, Ordering::Relaxed);
                }
                Record::Reset(reason) => return Err(Fault::Remote(reason)),
            }
        }
        if !decoder.ended() {
            local.flush().await.map_err(Fault::Local)?;
        }
    }
}

/// Copies bytes as they are until their end, which it passes on. The last two arguments say whose
/// fault a failed read and a failed write are.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    transferred: &AtomicU64,
    reading: fn(io::Error) -> Fault,
    writing: fn(io::Error) -> Fault,
) -> Result<(), Fault> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = from.read(&mut buffer).await.map_err(reading)?;
        if count == 0 {
            return to.shutdown().await.map_err(writing);
        }
        to.write_all(&buffer[..count]).await.map_err(writing)?;
        to.flush().await.map_err(writing)?;
        transferred.fetch_add(count as u64, Ordering::Relaxed);
    }
}
