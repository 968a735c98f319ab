//! Requests that are one line on a stream socket, whose other bytes are data.

use std::io::ErrorKind;
use std::os::fd::AsFd;

use hvsock_endpoint::{
    HybridRequest, HybridRequestReader, InvalidHybridRequest, InvalidTextRequest, MAX_TEXT_LINE,
    TextRequest, TextRequestReader,
};
use hvsock_sys::stream;

/// Reads a line in the pieces in which it arrives.
pub(super) trait LineReader {
    type Request;
    type Invalid;

    /// The error of a line that ends before its newline.
    const NO_NEWLINE: Self::Invalid;

    /// The most bytes that can still belong to the line; never 0.
    fn wanted(&self) -> usize;
    /// Whether nothing has arrived.
    fn is_empty(&self) -> bool;
    /// Reads further bytes. Returns how many belong to the line, and the request once it is complete.
    fn read(&mut self, bytes: &[u8]) -> Result<(usize, Option<Self::Request>), Self::Invalid>;
}

/// What one read of a client's socket came to.
pub(super) enum Received<L: LineReader> {
    /// The request.
    Request(L::Request),
    /// The rest of the request has not arrived.
    Incomplete,
    /// The client sends no request any more.
    Closed,
    Invalid(L::Invalid),
}

/// Reads up to the end of the request, and leaves what follows it in the socket.
pub(super) fn receive<L: LineReader>(socket: impl AsFd, line: &mut L) -> Received<L> {
    let mut bytes = [0; MAX_TEXT_LINE];
    // Each round consumes a byte at least, so they are few.
    loop {
        let wanted = line.wanted().min(bytes.len());
        let peeked = match stream::peek(&socket, &mut bytes[..wanted]) {
            Ok(0) if line.is_empty() => return Received::Closed,
            Ok(0) => return Received::Invalid(L::NO_NEWLINE),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Received::Incomplete,
            Err(_) => return Received::Closed,
        };
        let (count, request) = match line.read(&bytes[..peeked]) {
            Ok(read) => read,
            Err(error) => return Received::Invalid(error),
        };
        match stream::recv(&socket, &mut bytes[..count]) {
            Ok(received) if received == count => {}
            // Only the broker reads the socket.
            Ok(_) | Err(_) => return Received::Closed,
        }
        if let Some(request) = request {
            return Received::Request(request);
        }
    }
}

impl LineReader for HybridRequestReader {
    type Request = HybridRequest;
    type Invalid = InvalidHybridRequest;

    const NO_NEWLINE: InvalidHybridRequest = InvalidHybridRequest::NoNewline;

    fn wanted(&self) -> usize {
        self.wanted()
    }

    fn is_empty(&self) -> bool {
        self.received().is_empty()
    }

    fn read(
        &mut self,
        bytes: &[u8],
    ) -> Result<(usize, Option<HybridRequest>), InvalidHybridRequest> {
        self.read(bytes)
    }
}

impl LineReader for TextRequestReader {
    type Request = TextRequest;
    type Invalid = InvalidTextRequest;

    const NO_NEWLINE: InvalidTextRequest = InvalidTextRequest::NoNewline;

    fn wanted(&self) -> usize {
        self.wanted()
    }

    fn is_empty(&self) -> bool {
        self.received().is_empty()
    }

    fn read(&mut self, bytes: &[u8]) -> Result<(usize, Option<TextRequest>), InvalidTextRequest> {
        self.read(bytes)
    }
}
