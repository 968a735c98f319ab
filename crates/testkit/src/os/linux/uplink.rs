//! A guest's side of the uplink protocol, over any stream.

use std::io::{ErrorKind, Read, Write};

use hvsock::{Explanation, Refusal, SockAddrHv};
use hvsock_endpoint::uplink::{
    ChildId, ExplainUp, FrameReader, GuestFrame, HostFrame, MAX_FRAME, Request, What,
};
use hvsock_endpoint::{LookupKind, Refused};

/// A guest's connection to its host's broker. Its methods panic if the broker violates the protocol.
pub struct Client<S> {
    /// The stream.
    pub stream: S,
    reader: FrameReader,
}

impl<S: Read + Write> Client<S> {
    /// A client on a new connection.
    pub fn new(stream: S) -> Self {
        let reader = FrameReader::new();
        Self { stream, reader }
    }

    /// Sends a frame.
    #[track_caller]
    pub fn send(&mut self, frame: &GuestFrame) {
        let mut bytes = Vec::new();
        frame.append(&mut bytes);
        match self.stream.write_all(&bytes) {
            // The host has closed the connection, which `receive` tells.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                ) => {}
            written => written.expect("written"),
        }
    }

    /// The next frame; `None` at the end, or after a reset.
    #[track_caller]
    pub fn receive(&mut self) -> Option<HostFrame> {
        loop {
            if let Some(message) = self.reader.next().expect("a frame") {
                return Some(HostFrame::decode(message).expect("a frame of the host"));
            }
            let mut bytes = [0; MAX_FRAME];
            let count = match self.stream.read(&mut bytes) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => 0,
                Err(error) => panic!("{error}"),
            };
            if count == 0 {
                return None;
            }
            self.reader.add(&bytes[..count]);
        }
    }

    /// Sends a frame and receives its answer.
    #[track_caller]
    pub fn ask(&mut self, frame: &GuestFrame) -> HostFrame {
        self.send(frame);
        self.receive().expect("an answer")
    }

    /// Looks a name up. The error is the code of the refusal.
    ///
    /// # Errors
    ///
    /// If the broker refuses it.
    #[track_caller]
    pub fn look_up(&mut self, kind: LookupKind, name: &str) -> Result<[u8; 16], u32> {
        let name = name.to_owned();
        match self.ask(&GuestFrame::Lookup { kind, name }) {
            HostFrame::Found { guid } => Ok(guid),
            HostFrame::Refused(Refused { code, .. }) => Err(code),
            other => panic!("{other:?}"),
        }
    }

    /// Asks for an explanation; `None` if the request would succeed.
    #[track_caller]
    pub fn explain(&mut self, what: What, address: SockAddrHv) -> Option<Explanation> {
        let request = Request(7);
        let child = ChildId::MACHINE;
        let answer = self.ask(&GuestFrame::Explain(ExplainUp {
            request,
            child,
            what,
            address,
        }));
        let HostFrame::Explained {
            request: Request(7),
            explanation: Refused { code, detail, .. },
        } = answer
        else {
            panic!("{answer:?}");
        };
        let (detail, lines) = detail.split_once('\n').unwrap_or((&detail, ""));
        let refusal = (code != 0).then(|| Refusal::from_wire(code, detail))?;
        Some(Explanation::from_lines(Err(refusal), lines))
    }
}
