//! What the fuzz targets run of machined's answers.

use super::message::{MAX_MESSAGE, Message, lengths};
use super::{dbus, varlink};

/// Reads a message of the bus, and its arguments as the properties of a machine.
pub(crate) fn dbus(bytes: &[u8]) {
    if let Ok((fields, body)) = lengths(bytes) {
        assert!(fields <= MAX_MESSAGE && body <= MAX_MESSAGE);
    }
    if let Ok(message) = Message::parse(bytes) {
        for argument in &message.body {
            dbus::fuzz(argument);
        }
    }
}

/// Reads a message of varlink.
pub(crate) fn varlink(bytes: &[u8]) {
    if let Ok(reply) = serde_json::from_slice(bytes) {
        varlink::fuzz(&reply);
    }
}
