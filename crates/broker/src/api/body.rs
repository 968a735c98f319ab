//! Bodies of answers: long listings in pieces, events one line at a time.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

/// How much of a listing is handed over at a time.
const PIECE: usize = 64 * 1024;
/// How long a listing may take to be read. Its memory and its permit are held as long.
const LONGEST: Duration = Duration::from_secs(60);

/// A finished answer that holds its permit until it has been read.
pub(crate) fn listing(bytes: Vec<u8>, permit: OwnedSemaphorePermit) -> Body {
    Body::new(Pieces {
        rest: bytes.into(),
        deadline: Instant::now() + LONGEST,
        _permit: permit,
    })
}

struct Pieces {
    rest: Bytes,
    deadline: Instant,
    _permit: OwnedSemaphorePermit,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        if Instant::now() > self.deadline {
            return Poll::Ready(Some(Err(io::ErrorKind::TimedOut.into())));
        }
        let length = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(length);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.rest.len() as u64)
    }
}

/// Whatever comes out of `lines`, until its sender is gone.
pub(crate) fn lines(lines: mpsc::Receiver<Bytes>, permit: OwnedSemaphorePermit) -> Body {
    Body::new(Lines {
        lines,
        _permit: permit,
    })
}

struct Lines {
    lines: mpsc::Receiver<Bytes>,
    _permit: OwnedSemaphorePermit,
}

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.lines
            .poll_recv(cx)
            .map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}
