//! The stream of events: one JSON object per line.

use bytes::BytesMut;
use hvsock_control::Event;
use hyper::body::Incoming;

use crate::error::{ClientError, Result};
use crate::http::{MAX_RESPONSE, Socket, parse};

/// An iterator over events as they happen.
#[derive(Debug)]
pub struct Events<'a> {
    socket: &'a Socket,
    body: Incoming,
    /// Bytes received after the last complete line.
    rest: BytesMut,
    /// The number of bytes of `rest` that contain no line end.
    searched: usize,
}

impl<'a> Events<'a> {
    pub(crate) fn new(socket: &'a Socket, body: Incoming) -> Self {
        Self {
            socket,
            body,
            rest: BytesMut::new(),
            searched: 0,
        }
    }
}

impl Iterator for Events<'_> {
    type Item = Result<Event>;

    /// Blocks until the next event. `None` when the broker has ended.
    fn next(&mut self) -> Option<Result<Event>> {
        loop {
            let new = &self.rest[self.searched..];
            if let Some(end) = new.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(self.searched + end + 1);
                self.searched = 0;
                return Some(parse(&line));
            }
            self.searched = self.rest.len();
            if self.rest.len() > MAX_RESPONSE {
                return Some(Err(ClientError::Protocol("an event without end".into())));
            }
            let bytes = self.socket.next_bytes(&mut self.body)?;
            self.rest.extend_from_slice(&bytes);
        }
    }
}
