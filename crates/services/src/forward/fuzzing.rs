//! What the fuzz targets run of the forwarding protocol.

use prost::Message as _;

use super::address::Address;
use super::message;
use super::records::{Decoder, MAX_RECORD, Record};
use crate::wire::forward as wire;

/// Decodes records that arrive in pieces of `piece` bytes, up to the first violation.
pub fn records(piece: usize, bytes: &[u8]) {
    let mut decoder = Decoder::default();
    for mut piece in bytes.chunks(piece.max(1)) {
        loop {
            match decoder.next(&mut piece) {
                Ok(Some(Record::Data(data))) => assert!((1..=MAX_RECORD).contains(&data.len())),
                Ok(Some(Record::End)) => assert!(decoder.ended()),
                Ok(Some(Record::Reset(reason))) => assert!(reason.len() <= 3 * super::MAX_REASON),
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(piece.is_empty());
    }
}

/// Receives the messages that begin a connection, until one is no message.
pub fn messages(mut bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        while let Ok(Some(request)) = message::receive::<_, wire::Request>(&mut bytes).await {
            if let Some(wire::request::What::Connect(address)) = &request.what {
                valid(address);
            }
        }
    });
}

/// Parses an address as text and as a message. A valid one has one form on the wire.
pub(crate) fn address(bytes: &[u8]) {
    if let Some(address) = std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| text.parse().ok())
    {
        let address: Address = address;
        let again = address.to_string().parse();
        assert_eq!(again.as_ref().ok(), Some(&address), "{address}");
    }
    if let Ok(address) = wire::Address::decode(bytes) {
        valid(&address);
    }
}

fn valid(address: &wire::Address) {
    if let Ok(address) = Address::from_wire(address) {
        let wire = address.to_wire();
        let again = wire.as_ref().ok().map(Address::from_wire);
        assert_eq!(again.and_then(Result::ok), Some(address));
    }
}
