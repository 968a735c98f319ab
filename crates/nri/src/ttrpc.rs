//! ttRPC: requests and responses with a header of ten bytes.

use prost::Message;

/// The most bytes of a message without its header.
const MAX_DATA: usize = 4 << 20;
const HEADER: usize = 10;
/// The most bytes of a message.
pub const MAX_FRAME: usize = HEADER + MAX_DATA;

/// The numbers of outcomes, as in gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    InvalidArgument = 3,
    FailedPrecondition = 9,
    Unimplemented = 12,
}

/// A call.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    #[prost(string, tag = "1")]
    pub service: String,
    #[prost(string, tag = "2")]
    pub method: String,
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// When the caller gives up, from now; 0 is never.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
}

/// The outcome of a call.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// Why a call has failed (`google.rpc.Status`); the code 0 is success.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(string, tag = "2")]
    pub message: String,
}

impl Response {
    /// A failure.
    pub fn failed(code: Code, message: String) -> Self {
        let code = code as i32;
        Self {
            status: Some(Status { code, message }),
            payload: Vec::new(),
        }
    }
}

/// The types of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Request = 1,
    Response = 2,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The number of the call: odd, and higher than those of earlier calls.
    pub stream: u32,
    /// [`Kind`], or the number of a type that this side does not use.
    pub kind: u8,
    /// Of a request: 0 if it has one request and one response.
    pub flags: u8,
    pub data: Vec<u8>,
}

impl Frame {
    /// A message of a call with one request and one response.
    pub fn new(stream: u32, kind: Kind, content: &impl Message) -> Self {
        Self {
            stream,
            kind: kind as u8,
            flags: 0,
            data: content.encode_to_vec(),
        }
    }

    /// The message as bytes. `None` if it is too long.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let length = u32::try_from(self.data.len()).ok()?;
        if self.data.len() > MAX_DATA {
            return None;
        }
        let mut bytes = Vec::with_capacity(HEADER + self.data.len());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&self.stream.to_be_bytes());
        bytes.extend_from_slice(&[self.kind, self.flags]);
        bytes.extend_from_slice(&self.data);
        Some(bytes)
    }
}

/// A message is longer than the protocol allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {0} bytes is longer than 4 MiB")]
pub struct TooLong(pub u32);

/// Reads messages from a stream of bytes. Keeps no more than one that has not all arrived.
#[derive(Debug, Default)]
pub struct Reader(Vec<u8>);

impl Reader {
    /// Passes on the messages that are complete.
    ///
    /// # Errors
    /// [`TooLong`]: then the connection cannot be used any more.
    pub fn receive(
        &mut self,
        mut bytes: &[u8],
        mut sink: impl FnMut(Frame),
    ) -> Result<(), TooLong> {
        loop {
            let known = self.0.len();
            if known < HEADER {
                let (now, later) = bytes.split_at((HEADER - known).min(bytes.len()));
                self.0.extend_from_slice(now);
                bytes = later;
            }
            let [a, b, c, d, e, f, g, h, kind, flags, data @ ..] = self.0.as_slice() else {
                return Ok(());
            };
            let length = u32::from_be_bytes([*a, *b, *c, *d]);
            let wanted = usize::try_from(length).unwrap_or(usize::MAX);
            if wanted > MAX_DATA {
                return Err(TooLong(length));
            }
            let (stream, kind, flags) = (u32::from_be_bytes([*e, *f, *g, *h]), *kind, *flags);
            let missing = wanted.saturating_sub(data.len());
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            self.0.extend_from_slice(now);
            bytes = later;
            if now.len() < missing {
                return Ok(());
            }
            let data = self.0.split_off(HEADER);
            self.0.clear();
            sink(Frame {
                stream,
                kind,
                flags,
                data,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_has_its_length_stream_type_and_flags_before_its_data() {
        let request = Request {
            service: "s".to_owned(),
            method: "m".to_owned(),
            payload: vec![1],
            timeout_nano: 2,
        };
        let bytes = Frame::new(3, Kind::Request, &request).encode().unwrap();
        assert_eq!(
            bytes,
            b"\0\0\0\x0b\0\0\0\x03\x01\0\x0a\x01s\x12\x01m\x1a\x01\x01\x20\x02"
        );
        let failed = Response::failed(Code::Unimplemented, "no".to_owned());
        let bytes = Frame::new(1, Kind::Response, &failed).encode().unwrap();
        assert_eq!(
            bytes,
            b"\0\0\0\x08\0\0\0\x01\x02\0\x0a\x06\x08\x0c\x12\x02no"
        );
    }

    #[test]
    fn a_message_of_more_than_4_mib_is_neither_sent_nor_read() {
        let frame = |len| Frame {
            stream: 1,
            kind: 1,
            flags: 0,
            data: vec![0; len],
        };
        assert_eq!(frame(MAX_DATA).encode().unwrap().len(), MAX_FRAME);
        assert_eq!(frame(MAX_DATA + 1).encode(), None);
        let mut reader = Reader::default();
        let header = b"\0\x40\0\x01\0\0\0\x01\x01\0";
        assert_eq!(
            reader.receive(header, |_| unreachable!()),
            Err(TooLong(0x40_0001))
        );
    }

    proptest! {
        #[test]
        fn messages_are_read_however_they_are_cut(
            frames in prop::collection::vec(
                (any::<u32>(), any::<u8>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..10),
            cut in 1_usize..30,
        ) {
            let frames: Vec<Frame> = frames
                .into_iter()
                .map(|(stream, kind, flags, data)| Frame { stream, kind, flags, data })
                .collect();
            let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().unwrap()).collect();
            let (mut reader, mut read) = (Reader::default(), Vec::new());
            for bytes in bytes.chunks(cut) {
                reader.receive(bytes, |frame| read.push(frame)).unwrap();
            }
            prop_assert_eq!(read, frames);
        }
    }
}
