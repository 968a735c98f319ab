//! The stream of events: one JSON object per line.

use bytes::BytesMut;
use hvsock_control::{Event, EventKind};
use hyper::Method;
use hyper::body::Incoming;

use crate::error::{ClientError, Result};
use crate::http::{Call, MAX_RESPONSE, Socket, parse};

/// An iterator over events as they happen.
#[derive(Debug)]
pub struct Events<'a> {
    socket: &'a Socket,
    body: Incoming,
    /// With records of the audit.
    audit: bool,
    /// Bytes received after the last complete line.
    rest: BytesMut,
    /// The number of bytes of `rest` that contain no line end.
    searched: usize,
}

impl<'a> Events<'a> {
    pub(crate) fn open(socket: &'a Socket, audit: bool) -> Result<Self> {
        let body = socket.open(call(audit))?;
        Ok(Self {
            socket,
            body,
            audit,
            rest: BytesMut::new(),
            searched: 0,
        })
    }

    /// Continues in the new broker after the old one was handed over.
    fn resume(&mut self, resume: &str) -> Result<()> {
        let call = call(self.audit).query("resume", resume);
        self.body = self.socket.open(call)?;
        self.rest.clear();
        self.searched = 0;
        Ok(())
    }
}

fn call(audit: bool) -> Call {
    let call = Call::new(Method::GET, &["v1", "events"]);
    match audit {
        true => call.query("audit", "true"),
        false => call,
    }
}

impl Iterator for Events<'_> {
    type Item = Result<Event>;

    /// Blocks until the next event. `None` when the broker has ended. If it is handed over to another process, the
    /// events go on from there, without a gap.
    fn next(&mut self) -> Option<Result<Event>> {
        loop {
            let new = &self.rest[self.searched..];
            if let Some(end) = new.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(self.searched + end + 1);
                self.searched = 0;
                match parse::<Event>(&line) {
                    Ok(event) => match event.what {
                        EventKind::HandedOver { resume } => {
                            if let Err(error) = self.resume(&resume) {
                                return Some(Err(error));
                            }
                            continue;
                        }
                        _ => return Some(Ok(event)),
                    },
                    Err(error) => return Some(Err(error)),
                }
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
