//! The data of a long transfer: every position has a value that both ends know, so that a lost, doubled or
//! misplaced byte is seen, and a sum over all of them.

use std::io::{self, Read, Write};

/// Bytes of a block. Its first eight are its number.
const BLOCK: usize = 64 << 10;

/// What has passed: a number of bytes, and their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Passed {
    pub bytes: u64,
    pub sum: u64,
}

impl Passed {
    /// Adds a block that has its number in front. All other bytes are the same in each block and compared
    /// one by one, so the numbers in order are a sum over all.
    fn add(&mut self, number: u64, bytes: usize) {
        self.bytes += bytes as u64;
        self.sum = (self.sum.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

fn block() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut block = Vec::with_capacity(BLOCK);
    while block.len() < BLOCK {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        block.extend(state.to_le_bytes());
    }
    block
}

/// Sends this many bytes, rounded up to whole blocks.
pub(super) fn send(to: &mut impl Write, bytes: u64) -> io::Result<Passed> {
    let (mut block, mut passed) = (block(), Passed::default());
    for number in 0..bytes.div_ceil(BLOCK as u64) {
        block[..8].copy_from_slice(&number.to_le_bytes());
        to.write_all(&block)?;
        passed.add(number, BLOCK);
    }
    Ok(passed)
}

/// Receives to the end and compares every byte with what was sent.
pub(super) fn receive(from: &mut impl Read) -> io::Result<Passed> {
    let (mut expected, mut passed) = (block(), Passed::default());
    let mut received = vec![0; BLOCK];
    for number in 0.. {
        let mut filled = 0;
        while filled < BLOCK {
            match from.read(&mut received[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            break;
        }
        expected[..8].copy_from_slice(&u64::to_le_bytes(number));
        if received[..filled] != expected[..filled] {
            let same = received.iter().zip(&expected).take_while(|(a, b)| a == b);
            let at = passed.bytes + same.count() as u64;
            let differs = format!("byte {at} differs from what was sent");
            return Err(io::Error::other(differs));
        }
        passed.add(number, filled);
    }
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_lost_or_doubled_byte_is_found() {
        let mut bytes = Vec::new();
        let sent = send(&mut bytes, 200_000).expect("sent");
        assert_eq!(sent.bytes, 4 * BLOCK as u64);
        assert_eq!(receive(&mut &bytes[..]).expect("received"), sent);
        for at in [0, 7, 8, 100_000, bytes.len() - 1] {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let error = receive(&mut &changed[..]).expect_err("it differs");
            assert!(
                error.to_string().contains(&format!("byte {at} ")),
                "{error}"
            );
            changed = bytes.clone();
            changed.remove(at);
            assert_ne!(receive(&mut &changed[..]).ok(), Some(sent));
        }
        let missing = &bytes[..bytes.len() - BLOCK];
        assert_ne!(receive(&mut &missing[..]).expect("whole blocks"), sent);
    }
}
