//! Messages of the endpoint protocol, from a hostile client or broker. Encoding a decoded message gives the same
//! bytes, so every message has one form.

use hvsock_endpoint::{BrokerMessage, ClientMessage, MAX_MESSAGE};
use hvsock_fabric::{Explanation, Refusal};

use super::vectors;
use crate::target::Seed;

/// Decodes one message in both directions.
pub(crate) fn run(bytes: &[u8]) {
    let mut written = Vec::new();
    if let Ok(message) = ClientMessage::decode(bytes) {
        message.encode(&mut written);
        assert_eq!(written, bytes, "{message:?}");
    }
    if let Ok(message) = BrokerMessage::decode(bytes) {
        message.encode(&mut written);
        assert_eq!(written, bytes, "{message:?}");
    }
    // The text of EXPLAINED. What is printed of it is read as what is printed the same.
    let text = String::from_utf8_lossy(bytes);
    let read = |text: &str| Explanation::from_lines(Err(Refusal::NoListener), text).to_lines();
    let printed = read(&text);
    assert_eq!(read(&printed), printed);
}

/// One message of each kind, and malformed ones.
pub(crate) fn seeds() -> Vec<Seed> {
    let explanations = vectors::texts(vectors::EXPLANATIONS, "text");
    let mut messages = vectors::bytes(vectors::MESSAGES, "bytes");
    messages.extend(explanations);
    messages.retain(|(_, bytes)| bytes.len() <= MAX_MESSAGE);
    messages
}
