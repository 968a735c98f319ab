//! The protocol between the two ends of a lane: requests and replies around the measured bytes, and a check
//! of those bytes.

use anyhow::{bail, ensure};

use super::wakeups::WakeupCounts;

/// A request to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Read `count` writes of `size` bytes.
    Read { size: usize, count: u64 },
    /// Make `count` writes of `size` bytes.
    Write { size: usize, count: u64 },
    /// Echo `count` messages.
    Echo { count: u64 },
    /// Sleep for `ms` milliseconds.
    Sleep { ms: u64 },
    /// Park without spinning from now on.
    DisableSpin,
    /// Pin the thread that serves this lane to one processor.
    PinTo { cpu: usize },
}

/// Size of a request in bytes.
pub(crate) const REQUEST: usize = 24;
/// Size of a reply in bytes.
pub(crate) const REPLY: usize = 32;

impl Request {
    pub(crate) fn encode(self) -> [u8; REQUEST] {
        words(match self {
            Self::Read { size, count } => [1, size as u64, count],
            Self::Echo { count } => [2, 0, count],
            Self::Sleep { ms } => [3, 0, ms],
            Self::DisableSpin => [4, 0, 0],
            Self::PinTo { cpu } => [5, cpu as u64, 0],
            Self::Write { size, count } => [6, size as u64, count],
        })
    }

    pub(crate) fn decode(bytes: [u8; REQUEST]) -> anyhow::Result<Self> {
        Ok(match numbers(bytes) {
            [1, size, count] if size > 0 => Self::Read {
                size: usize::try_from(size)?,
                count,
            },
            [2, _, count] => Self::Echo { count },
            [3, _, ms] => Self::Sleep { ms },
            [4, ..] => Self::DisableSpin,
            [5, cpu, _] => Self::PinTo {
                cpu: usize::try_from(cpu)?,
            },
            [6, size, count] if size > 0 => Self::Write {
                size: usize::try_from(size)?,
                count,
            },
            other => bail!("invalid request {other:?}"),
        })
    }
}

/// The peer's reply after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Bytes that the peer read.
    pub(crate) bytes: u64,
    /// Count of reads whose first or last byte was wrong.
    pub(crate) wrong: u64,
    /// Wakeup counts of the peer since it connected.
    pub(crate) wakeups: Option<WakeupCounts>,
}

impl Reply {
    pub(crate) fn encode(self) -> [u8; REPLY] {
        let notifications = self.wakeups.map(|wakeups| wakeups.notifications);
        let parks = self.wakeups.and_then(|wakeups| wakeups.parks);
        words([
            self.bytes,
            self.wrong,
            notifications.unwrap_or(u64::MAX),
            parks.unwrap_or(u64::MAX),
        ])
    }

    pub(crate) fn decode(bytes: [u8; REPLY]) -> Self {
        let [bytes, wrong, notifications, parks] = numbers(bytes);
        let known = |number: u64| Some(number).filter(|number| *number != u64::MAX);
        let parks = known(parks);
        Self {
            bytes,
            wrong,
            wakeups: known(notifications).map(|notifications| WakeupCounts {
                notifications,
                parks,
            }),
        }
    }

    /// Fails unless all `bytes` arrived without a wrong one.
    pub(crate) fn check(&self, bytes: u64) -> anyhow::Result<()> {
        ensure!(
            self.bytes == bytes && self.wrong == 0,
            "{} of {bytes} bytes arrived, {} reads had a wrong byte",
            self.bytes,
            self.wrong
        );
        Ok(())
    }
}

/// The bytes of one write, in which neighbouring bytes differ.
pub(crate) fn payload(size: usize) -> Vec<u8> {
    (0..size).map(byte_at).collect()
}

fn byte_at(place: usize) -> u8 {
    ((place as u32).wrapping_mul(0x9e37_79b1) >> 24) as u8
}

/// Size of the reader's buffer: the size of a write, but at least 4 KiB, as programs with small messages
/// have. The same for every transport.
pub(crate) fn buffer_for(size: usize) -> usize {
    size.max(4096)
}

/// Checks the first and last byte of each read. That detects lost, duplicated and shifted bytes, at no cost
/// compared to the copy.
#[derive(Debug)]
pub(crate) struct Checker {
    size: u64,
    bytes: u64,
    wrong: u64,
}

impl Checker {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            size: size as u64,
            bytes: 0,
            wrong: 0,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn check_read(&mut self, read: &[u8]) {
        let (Some(first), Some(last)) = (read.first(), read.last()) else {
            return;
        };
        let begin = self.bytes;
        self.bytes += read.len() as u64;
        let expected = |at: u64| byte_at((at % self.size) as usize);
        let right = *first == expected(begin) && *last == expected(self.bytes - 1);
        self.wrong += u64::from(!right);
    }

    pub(crate) fn reply(&self, wakeups: Option<WakeupCounts>) -> Reply {
        Reply {
            bytes: self.bytes,
            wrong: self.wrong,
            wakeups,
        }
    }
}

fn words<const N: usize, const BYTES: usize>(numbers: [u64; N]) -> [u8; BYTES] {
    const { assert!(BYTES == N * 8) };
    let mut bytes = [0; BYTES];
    for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn numbers<const N: usize, const BYTES: usize>(bytes: [u8; BYTES]) -> [u64; N] {
    const { assert!(BYTES == N * 8) };
    let mut numbers = [0; N];
    for (number, place) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut word = [0; 8];
        word.copy_from_slice(place);
        *number = u64::from_le_bytes(word);
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_survive_encoding() {
        let read = Request::Read {
            size: 64,
            count: 1 << 40,
        };
        let write = Request::Write { size: 7, count: 1 };
        for request in [
            read,
            write,
            Request::Echo { count: 7 },
            Request::Sleep { ms: 9 },
            Request::DisableSpin,
            Request::PinTo { cpu: 1 },
        ] {
            assert_eq!(Request::decode(request.encode()).unwrap(), request);
        }
        assert!(Request::decode([0; REQUEST]).is_err());
        let wakeups = |parks| {
            Some(WakeupCounts {
                notifications: 3,
                parks,
            })
        };
        for wakeups in [None, wakeups(None), wakeups(Some(4))] {
            let reply = Reply {
                bytes: 1,
                wrong: 2,
                wakeups,
            };
            assert_eq!(Reply::decode(reply.encode()), reply);
        }
    }

    #[test]
    fn lost_and_duplicated_bytes_are_detected() {
        let sent = payload(64).repeat(3);
        let faults = |bytes: &[u8], reads: usize| {
            let mut checker = Checker::new(64);
            bytes
                .chunks(reads)
                .for_each(|read| checker.check_read(read));
            checker.reply(None).check(sent.len() as u64)
        };
        assert!(faults(&sent, 50).is_ok());
        let mut lost = sent.clone();
        lost.remove(70);
        assert!(faults(&lost, 50).is_err());
        lost.insert(10, 0);
        assert!(faults(&lost, 50).is_err());
        let mut doubled = sent.clone();
        doubled.insert(70, sent[70]);
        doubled.pop();
        assert!(faults(&doubled, 50).is_err());
    }
}
