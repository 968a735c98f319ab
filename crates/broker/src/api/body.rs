//! Response bodies: long listings in chunks, events one line at a time.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::permits::Permit;

/// The size of a listing's chunks in bytes.
const CHUNK: usize = 64 * 1024;
/// How long a client may take to read a listing, whose memory and permit are held meanwhile.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// A complete body that holds its permit until it has been read.
pub(crate) fn listing(bytes: Vec<u8>, permit: Permit) -> Body {
    Body::new(Listing {
        rest: bytes.into(),
        deadline: Instant::now() + READ_TIMEOUT,
        _permit: permit,
    })
}

struct Listing {
    rest: Bytes,
    deadline: Instant,
    _permit: Permit,
}

impl HttpBody for Listing {
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
        let length = self.rest.len().min(CHUNK);
        let chunk = self.rest.split_to(length);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.rest.len() as u64)
    }
}

/// A body of lines from a channel. It ends when the sender is dropped.
pub(crate) fn lines(lines: mpsc::Receiver<Bytes>, permit: Permit) -> Body {
    Body::new(EventLines {
        lines,
        _permit: permit,
    })
}

struct EventLines {
    lines: mpsc::Receiver<Bytes>,
    _permit: Permit,
}

impl HttpBody for EventLines {
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
