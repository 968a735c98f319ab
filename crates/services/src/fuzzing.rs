//! What the fuzz targets (`fuzz/`) run, where the API of the crate has no such function. No part of that API.

use std::fmt::Debug;

use prost::Message;

use crate::forward::fuzzing as forward;
use crate::guest::fuzzing as guest;
use crate::wire;

pub use forward::{messages, records};

/// Decodes a message of an interface, chosen by `kind`, and runs what checks it.
pub fn message(kind: u8, bytes: &[u8]) {
    match kind % 8 {
        0 => guest::start(bytes),
        1 => guest::pool(bytes),
        2 => guest::mounts(bytes),
        3 => guest::os_release(bytes),
        4 => forward::address(bytes),
        5 => decoded::<wire::heartbeat::Beat>(bytes),
        6 => decoded::<wire::kvp::SetRequest>(bytes),
        _ => decoded::<wire::freeze::FreezeRequest>(bytes),
    }
}

/// A decoded message is encoded as one that is decoded as the same.
fn decoded<M: Message + Default + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        let again = M::decode(message.encode_to_vec().as_slice());
        assert_eq!(again.as_ref(), Ok(&message));
    }
}
