//! Frames in a stream of bytes.

use crate::{DecodeError, MAX_MESSAGE};

/// The length of the field that precedes each message, in bytes.
const LENGTH: usize = 4;

/// The most bytes of a frame: the length and the message.
pub const MAX_FRAME: usize = LENGTH + MAX_MESSAGE;

/// Finds frames in the pieces in which they arrive. Keeps at most one frame that is not complete.
#[derive(Debug, Default)]
pub struct FrameReader {
    /// The bytes that have arrived and are not taken, from `start` on.
    bytes: Vec<u8>,
    start: usize,
}

impl FrameReader {
    /// A reader of a new stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes that have arrived. Take all frames by [`next`](Self::next) before adding more: the reader then
    /// keeps less than [`MAX_FRAME`] bytes in addition to `bytes`.
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next complete message, without its length. `None` if more bytes must arrive first.
    ///
    /// # Errors
    ///
    /// [`DecodeError::TooLong`] if the length is above [`MAX_MESSAGE`]. The stream is then of no use any more.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator could not borrow the message from its reader"
    )]
    pub fn next(&mut self) -> Result<Option<&[u8]>, DecodeError> {
        let rest = &self.bytes[self.start..];
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(DecodeError::TooLong);
        }
        let complete = rest.get(..length);
        if complete.is_some() {
            self.start += LENGTH + length;
        }
        Ok(complete)
    }

    /// Whether the stream may end here: no part of a frame is left.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == self.start
    }

    /// The bytes that are not taken: those with which the reader of another process goes on.
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// The number of bytes that are not taken.
    pub fn buffered(&self) -> usize {
        self.bytes.len() - self.start
    }
}

/// Appends the frame of a message that `encode` writes into an empty buffer.
pub(super) fn append(buffer: &mut Vec<u8>, encode: impl FnOnce(&mut Vec<u8>)) {
    let mut message = Vec::new();
    encode(&mut message);
    // A message has at most MAX_MESSAGE bytes.
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    buffer.extend_from_slice(&length.to_le_bytes());
    buffer.extend_from_slice(&message);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames(messages: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for message in messages {
            append(&mut bytes, |buffer| buffer.clone_from(message));
        }
        bytes
    }

    #[test]
    fn a_frame_longer_than_a_message_is_refused_by_its_length() {
        let mut reader = FrameReader::new();
        reader.add(&4097_u32.to_le_bytes());
        assert_eq!(reader.next(), Err(DecodeError::TooLong));
        assert_eq!(reader.next(), Err(DecodeError::TooLong));
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_not_empty() {
        let mut reader = FrameReader::new();
        assert!(reader.is_empty());
        reader.add(&[4, 0, 0, 0, 1]);
        assert_eq!(reader.next(), Ok(None));
        assert!(!reader.is_empty());
        reader.add(&[2, 3, 4]);
        assert_eq!(reader.next(), Ok(Some(&[1, 2, 3, 4][..])));
        assert!(reader.is_empty());
    }

    proptest! {
        #[test]
        fn frames_are_found_however_the_stream_is_cut(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            cuts in prop::collection::vec(1_usize..30, 1..60),
        ) {
            let bytes = frames(&messages);
            let mut reader = FrameReader::new();
            let mut found = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                let (piece, later) = rest.split_at((*cut).min(rest.len()));
                reader.add(piece);
                while let Some(message) = reader.next().unwrap() {
                    found.push(message.to_vec());
                }
                prop_assert!(reader.buffered() < MAX_FRAME);
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found, messages);
            prop_assert!(reader.is_empty());
        }
    }
}
