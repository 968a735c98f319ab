//! Two connections in one: each piece of bytes has a header with the number of its connection and its length,
//! both of four bytes, big-endian.

use crate::ttrpc::MAX_FRAME;

/// The connection on which the runtime calls the plugin.
pub const PLUGIN: u32 = 1;
/// The connection on which the plugin calls the runtime.
pub const RUNTIME: u32 = 2;

const HEADER: usize = 8;
/// The most bytes of one piece that is sent. The runtime reads each piece by one call with a buffer of 4 KiB
/// unless it knows that more is to come, and fails if the piece is longer.
const MAX_SENT: usize = 4096;

/// A piece is longer than any message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a piece of {0} bytes is longer than any message")]
pub struct TooLong(pub u32);

/// Separates what arrives.
#[derive(Debug, Default)]
pub struct Demux {
    /// A header of which not all has arrived.
    header: Vec<u8>,
    /// Of the piece that is arriving: its connection, and how much is to come.
    piece: (u32, usize),
}

impl Demux {
    /// Passes on the bytes of each connection as they arrive, without keeping them.
    ///
    /// # Errors
    /// [`TooLong`]: then the connection cannot be used any more.
    pub fn receive(
        &mut self,
        mut bytes: &[u8],
        mut sink: impl FnMut(u32, &[u8]),
    ) -> Result<(), TooLong> {
        while !bytes.is_empty() {
            let (connection, missing) = self.piece;
            if missing > 0 {
                let (now, later) = bytes.split_at(missing.min(bytes.len()));
                sink(connection, now);
                self.piece = (connection, missing - now.len());
                bytes = later;
                continue;
            }
            let (now, later) = bytes.split_at((HEADER - self.header.len()).min(bytes.len()));
            self.header.extend_from_slice(now);
            bytes = later;
            if let [a, b, c, d, e, f, g, h] = *self.header.as_slice() {
                let length = u32::from_be_bytes([e, f, g, h]);
                let missing = usize::try_from(length).unwrap_or(usize::MAX);
                if missing > MAX_FRAME {
                    return Err(TooLong(length));
                }
                self.piece = (u32::from_be_bytes([a, b, c, d]), missing);
                self.header.clear();
            }
        }
        Ok(())
    }
}

/// Adds `message` to `out` as pieces of `connection`. No piece has parts of two messages.
pub fn send(connection: u32, message: &[u8], out: &mut Vec<u8>) {
    for piece in message.chunks(MAX_SENT) {
        // At most 4,096.
        let length = u32::try_from(piece.len()).unwrap_or_default();
        out.extend_from_slice(&connection.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(piece);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_piece_has_the_number_of_its_connection_and_its_length() {
        let mut out = Vec::new();
        send(PLUGIN, b"abc", &mut out);
        send(RUNTIME, b"d", &mut out);
        assert_eq!(out, b"\0\0\0\x01\0\0\0\x03abc\0\0\0\x02\0\0\0\x01d");
        let mut out = Vec::new();
        send(PLUGIN, &[7; 9000], &mut out);
        assert_eq!(out.len(), 9000 + 3 * HEADER);
        assert_eq!(out[..HEADER], [0, 0, 0, 1, 0, 0, 0x10, 0]);
    }

    #[test]
    fn a_piece_that_is_longer_than_any_message_is_a_violation() {
        let longest = u32::try_from(MAX_FRAME).unwrap();
        for (length, want) in [
            (longest, Ok(())),
            (longest + 1, Err(TooLong(longest + 1))),
            (u32::MAX, Err(TooLong(u32::MAX))),
        ] {
            let mut bytes = 9_u32.to_be_bytes().to_vec();
            bytes.extend(length.to_be_bytes());
            let received = Demux::default().receive(&bytes, |_, _| unreachable!());
            assert_eq!(received, want);
        }
    }

    proptest! {
        #[test]
        fn what_was_sent_arrives_per_connection_however_it_is_cut(
            pieces in prop::collection::vec((0_u32..4, prop::collection::vec(any::<u8>(), 0..50)), 0..20),
            cut in 1_usize..30,
        ) {
            let (mut sent, mut want) = (Vec::new(), BTreeMap::<u32, Vec<u8>>::new());
            for (connection, bytes) in &pieces {
                send(*connection, bytes, &mut sent);
                want.entry(*connection).or_default().extend(bytes);
            }
            want.retain(|_, bytes| !bytes.is_empty());
            let (mut demux, mut got) = (Demux::default(), BTreeMap::<u32, Vec<u8>>::new());
            for bytes in sent.chunks(cut) {
                demux.receive(bytes, |connection, bytes| {
                    got.entry(connection).or_default().extend(bytes);
                }).unwrap();
            }
            prop_assert_eq!(got, want);
        }
    }
}
