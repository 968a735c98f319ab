//! Endpoint messages, uplink frames and lines of the text protocol from a hostile client or broker: decoding never panics, and encoding a decoded message
//! gives the same bytes.

#![no_main]

use hvsock_endpoint::uplink::{FrameReader, GuestFrame, HostFrame};
use hvsock_endpoint::{BrokerMessage, ClientMessage, TextReply, TextRequest, TextRequestReader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut written = Vec::new();
    if let Ok(message) = ClientMessage::decode(bytes) {
        message.encode(&mut written);
        assert_eq!(written, bytes, "{message:?}");
    }
    if let Ok(message) = BrokerMessage::decode(bytes) {
        message.encode(&mut written);
        assert_eq!(written, bytes, "{message:?}");
    }
    // A line in one piece is the line that a reader finds.
    if let Ok((count, Some(request))) = TextRequestReader::default().read(bytes) {
        assert_eq!(TextRequest::parse(&bytes[..count]), Ok(request));
    }
    if let Ok(reply) = TextReply::parse(bytes) {
        let line = reply.to_line();
        let again = TextReply::parse(line.as_bytes()).map(|again| again.to_line());
        assert_eq!(again.as_ref(), Ok(&line), "{reply:?}");
    }
    let mut reader = FrameReader::new();
    reader.add(bytes);
    while let Ok(Some(message)) = reader.next() {
        written.clear();
        if let Ok(frame) = GuestFrame::decode(message) {
            frame.append(&mut written);
            assert_eq!(&written[4..], message, "{frame:?}");
        }
        written.clear();
        if let Ok(frame) = HostFrame::decode(message) {
            frame.append(&mut written);
            assert_eq!(&written[4..], message, "{frame:?}");
        }
    }
});
