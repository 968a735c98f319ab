//! Records: a socket's bytes with markers for half-close and for failure, which the end of a
//! connection alone does not distinguish.

use super::MAX_REASON;
use crate::text::shortened;

/// The most bytes of one record.
pub(super) const MAX_RECORD: usize = 65_536;
/// The size of a record's header: its length.
pub(super) const HEAD: usize = 4;
/// In place of a length: half-close, the socket's bytes have ended.
pub(super) const END: [u8; HEAD] = [0; HEAD];
/// In place of a length: the socket broke.
const RESET: u32 = u32::MAX;

/// The header of a record of `length` bytes, 1 to [`MAX_RECORD`].
pub(super) fn head(length: usize) -> [u8; HEAD] {
    debug_assert!((1..=MAX_RECORD).contains(&length));
    (length as u32).to_le_bytes()
}

/// The record that reports why the socket broke.
pub(super) fn reset(reason: &str) -> Vec<u8> {
    let reason = shortened(reason.to_owned(), MAX_REASON);
    let mut bytes = RESET.to_le_bytes().to_vec();
    bytes.extend_from_slice(&(reason.len() as u32).to_le_bytes());
    bytes.extend_from_slice(reason.as_bytes());
    bytes
}

/// A decoded record, or a part of one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    /// Bytes of the socket, at least one.
    Data(&'a [u8]),
    /// Half-close: no more bytes follow.
    End,
    /// The socket broke, with the reason.
    Reset(String),
}

/// A violation of the record format by the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A record exceeds the limit.
    #[error("an oversized record of {0} bytes")]
    TooLong(u32),
    /// A record follows the half-close.
    #[error("a record after the half-close")]
    AfterEnd,
}

/// Decodes records from received bytes in segments of any length. Buffers at most a header and a reason.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    state: State,
    ended: bool,
}

#[derive(Debug)]
enum State {
    /// `have` bytes of the header have arrived.
    Head {
        have: usize,
        bytes: [u8; HEAD],
    },
    Data {
        left: usize,
    },
    ReasonHead {
        have: usize,
        bytes: [u8; HEAD],
    },
    Reason {
        left: usize,
        text: Vec<u8>,
    },
    /// After a failure all input is ignored.
    Over,
}

impl Default for State {
    fn default() -> Self {
        let (have, bytes) = (0, [0; HEAD]);
        Self::Head { have, bytes }
    }
}

impl Decoder {
    /// Whether the socket's bytes have ended with a half-close.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Returns the next record in `input` and advances `input` past it; `None` when all input is consumed.
    pub(super) fn next<'a>(
        &mut self,
        input: &mut &'a [u8],
    ) -> Result<Option<Record<'a>>, Violation> {
        while !input.is_empty() {
            match &mut self.state {
                State::Head { have, bytes } => {
                    if !filled(have, bytes, input) {
                        return Ok(None);
                    }
                    let length = u32::from_le_bytes(*bytes);
                    self.state = State::default();
                    match length {
                        RESET => {
                            let (have, bytes) = (0, [0; HEAD]);
                            self.state = State::ReasonHead { have, bytes };
                        }
                        _ if self.ended => return self.fail(Violation::AfterEnd),
                        0 => {
                            self.ended = true;
                            return Ok(Some(Record::End));
                        }
                        _ if length as usize <= MAX_RECORD => {
                            let left = length as usize;
                            self.state = State::Data { left };
                        }
                        _ => return self.fail(Violation::TooLong(length)),
                    }
                }
                State::Data { left } => {
                    let (data, rest) = input.split_at((*left).min(input.len()));
                    *input = rest;
                    *left -= data.len();
                    if *left == 0 {
                        self.state = State::default();
                    }
                    return Ok(Some(Record::Data(data)));
                }
                State::ReasonHead { have, bytes } => {
                    if !filled(have, bytes, input) {
                        return Ok(None);
                    }
                    let length = u32::from_le_bytes(*bytes);
                    if length as usize > MAX_REASON {
                        return self.fail(Violation::TooLong(length));
                    }
                    if length == 0 {
                        self.state = State::Over;
                        return Ok(Some(Record::Reset(String::new())));
                    }
                    let (left, text) = (length as usize, Vec::new());
                    self.state = State::Reason { left, text };
                }
                State::Reason { left, text } => {
                    let (more, rest) = input.split_at((*left).min(input.len()));
                    *input = rest;
                    *left -= more.len();
                    text.extend_from_slice(more);
                    if *left == 0 {
                        let reason = String::from_utf8_lossy(text).into_owned();
                        self.state = State::Over;
                        return Ok(Some(Record::Reset(reason)));
                    }
                }
                State::Over => *input = &[],
            }
        }
        Ok(None)
    }

    fn fail<T>(&mut self, violation: Violation) -> Result<T, Violation> {
        self.state = State::Over;
        Err(violation)
    }
}

/// Completes a header from `input`. Returns whether it is complete.
fn filled(have: &mut usize, bytes: &mut [u8; HEAD], input: &mut &[u8]) -> bool {
    let (more, rest) = input.split_at((HEAD - *have).min(input.len()));
    bytes[*have..*have + more.len()].copy_from_slice(more);
    *have += more.len();
    *input = rest;
    *have == HEAD
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// All that a reader sees.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Seen {
        data: Vec<u8>,
        ends: usize,
        reset: Option<String>,
        violation: Option<Violation>,
    }

    /// Decodes `bytes` in segments with the lengths in `lengths`, repeated.
    fn seen(bytes: &[u8], lengths: &[usize]) -> Seen {
        let mut decoder = Decoder::default();
        let mut seen = Seen::default();
        let mut rest = bytes;
        for length in lengths.iter().cycle() {
            let (mut input, after) =
                rest.split_at((*length).clamp(1, rest.len().max(1)).min(rest.len()));
            rest = after;
            loop {
                match decoder.next(&mut input) {
                    Ok(Some(Record::Data(data))) => {
                        assert!(!data.is_empty());
                        seen.data.extend_from_slice(data);
                    }
                    Ok(Some(Record::End)) => seen.ends += 1,
                    Ok(Some(Record::Reset(reason))) => seen.reset = Some(reason),
                    Ok(None) => break,
                    Err(violation) => {
                        seen.violation = Some(violation);
                        return seen;
                    }
                }
            }
            if rest.is_empty() {
                assert_eq!(decoder.ended(), seen.ends == 1);
                break;
            }
        }
        seen
    }

    fn of(records: &[Vec<u8>], last: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for record in records {
            bytes.extend_from_slice(&head(record.len()));
            bytes.extend_from_slice(record);
        }
        bytes.extend_from_slice(last);
        bytes
    }

    proptest! {
        #[test]
        fn records_decode_in_segments_of_any_length(
            records in vec(vec(any::<u8>(), 1..300), 0..20),
            lengths in vec(1_usize..200, 1..8),
        ) {
            let data = records.concat();
            let clean = seen(&of(&records, &END), &lengths);
            prop_assert_eq!(&clean.data, &data);
            prop_assert_eq!(clean.ends, 1);
            prop_assert_eq!(clean.reset, None);
            let broken = seen(&of(&records, &reset("no route")), &lengths);
            prop_assert_eq!(broken.data, data);
            prop_assert_eq!(broken.ends, 0);
            prop_assert_eq!(broken.reset.as_deref(), Some("no route"));
        }

        #[test]
        fn a_truncated_stream_has_no_half_close(
            records in vec(vec(any::<u8>(), 1..50), 1..10),
            end in any::<prop::sample::Index>(),
        ) {
            let bytes = of(&records, &END);
            let short = seen(&bytes[..end.index(bytes.len())], &[7]);
            prop_assert_eq!(short.ends, 0);
            prop_assert!(records.concat().starts_with(&short.data));
        }

        #[test]
        fn any_bytes_decode_or_fail(bytes in vec(any::<u8>(), 0..2000), lengths in vec(1_usize..50, 1..5)) {
            let one_way = seen(&bytes, &lengths);
            prop_assert_eq!(one_way, seen(&bytes, &[usize::MAX]));
        }
    }

    #[test]
    fn an_oversized_length_is_a_violation() {
        let longest = u32::try_from(MAX_RECORD).unwrap();
        assert_eq!(seen(&longest.to_le_bytes(), &[4]).violation, None);
        let longer = (longest + 1).to_le_bytes();
        let violation = Some(Violation::TooLong(longest + 1));
        assert_eq!(seen(&longer, &[1]).violation, violation);
        let reason = [RESET.to_le_bytes(), 1025_u32.to_le_bytes()].concat();
        assert_eq!(
            seen(&reason, &[3]).violation,
            Some(Violation::TooLong(1025))
        );
    }

    #[test]
    fn only_a_failure_may_follow_the_half_close() {
        let after = [&END[..], &reset("late")].concat();
        assert_eq!(seen(&after, &[5]).reset.as_deref(), Some("late"));
        let more = [&END[..], &head(1), b"x"].concat();
        assert_eq!(seen(&more, &[5]).violation, Some(Violation::AfterEnd));
        let twice = [END, END].concat();
        assert_eq!(seen(&twice, &[5]).violation, Some(Violation::AfterEnd));
    }

    #[test]
    fn a_long_reason_is_truncated() {
        let record = reset(&"ä".repeat(MAX_REASON));
        assert_eq!(record.len(), 2 * HEAD + MAX_REASON);
        let reason = seen(&record, &[100]).reset.unwrap();
        assert_eq!(reason, "ä".repeat(MAX_REASON / 2));
    }
}
