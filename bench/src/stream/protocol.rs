//! What a lane's two ends say to each other around the bytes that are measured, and how the
//! reader knows that these are the right ones.

use anyhow::{bail, ensure};

use super::bells::Bells;

/// What the peer is asked to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Read `count` writes of `size` bytes.
    Read { size: usize, count: u64 },
    /// Make `count` writes of `size` bytes.
    Write { size: usize, count: u64 },
    /// Send back `count` messages.
    Echo { count: u64 },
    /// Say nothing for so long.
    BeSilent { ms: u64 },
    /// Sleep at once from now on where it would wait.
    Park,
    /// Keep the thread that serves this lane on one processor.
    StayOn { cpu: usize },
}

/// Bytes of a request.
pub(crate) const REQUEST: usize = 24;
/// Bytes of an answer.
pub(crate) const ANSWER: usize = 32;

impl Request {
    pub(crate) fn encode(self) -> [u8; REQUEST] {
        words(match self {
            Self::Read { size, count } => [1, size as u64, count],
            Self::Echo { count } => [2, 0, count],
            Self::BeSilent { ms } => [3, 0, ms],
            Self::Park => [4, 0, 0],
            Self::StayOn { cpu } => [5, cpu as u64, 0],
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
            [3, _, ms] => Self::BeSilent { ms },
            [4, ..] => Self::Park,
            [5, cpu, _] => Self::StayOn {
                cpu: usize::try_from(cpu)?,
            },
            [6, size, count] if size > 0 => Self::Write {
                size: usize::try_from(size)?,
                count,
            },
            other => bail!("{other:?} is no request"),
        })
    }
}

/// What the peer says when it has done it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Bytes that it read.
    pub(crate) bytes: u64,
    /// Reads that began or ended with a byte that does not belong there.
    pub(crate) wrong: u64,
    /// What its end of the connection has done to wake the other since it began.
    pub(crate) bells: Option<Bells>,
}

impl Answer {
    pub(crate) fn encode(self) -> [u8; ANSWER] {
        let rings = self.bells.map(|bells| bells.rings);
        let sleeps = self.bells.and_then(|bells| bells.sleeps);
        words([
            self.bytes,
            self.wrong,
            rings.unwrap_or(u64::MAX),
            sleeps.unwrap_or(u64::MAX),
        ])
    }

    pub(crate) fn decode(bytes: [u8; ANSWER]) -> Self {
        let [bytes, wrong, rings, sleeps] = numbers(bytes);
        let known = |number: u64| Some(number).filter(|number| *number != u64::MAX);
        let sleeps = known(sleeps);
        Self {
            bytes,
            wrong,
            bells: known(rings).map(|rings| Bells { rings, sleeps }),
        }
    }

    /// That all bytes came, and none that is wrong.
    pub(crate) fn check(&self, bytes: u64) -> anyhow::Result<()> {
        ensure!(
            self.bytes == bytes && self.wrong == 0,
            "of {bytes} bytes {} came; {} reads had a wrong one",
            self.bytes,
            self.wrong
        );
        Ok(())
    }
}

/// One write: bytes that differ from those some places further.
pub(crate) fn payload(size: usize) -> Vec<u8> {
    (0..size).map(byte_at).collect()
}

fn byte_at(place: usize) -> u8 {
    ((place as u32).wrapping_mul(0x9e37_79b1) >> 24) as u8
}

/// Bytes of the reader's buffer: as many as a write has, but not fewer than programs that read
/// small messages have. The same for every transport.
pub(crate) fn buffer_for(size: usize) -> usize {
    size.max(4096)
}

/// Looks at the first and last byte of each read: what is lost, doubled or shifted shows, and
/// looking costs nothing beside copying.
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

    pub(crate) fn look(&mut self, read: &[u8]) {
        let (Some(first), Some(last)) = (read.first(), read.last()) else {
            return;
        };
        let begin = self.bytes;
        self.bytes += read.len() as u64;
        let expected = |at: u64| byte_at((at % self.size) as usize);
        let right = *first == expected(begin) && *last == expected(self.bytes - 1);
        self.wrong += u64::from(!right);
    }

    pub(crate) fn answer(&self, bells: Option<Bells>) -> Answer {
        Answer {
            bytes: self.bytes,
            wrong: self.wrong,
            bells,
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
    fn requests_and_answers_arrive_as_they_were() {
        let read = Request::Read {
            size: 64,
            count: 1 << 40,
        };
        let write = Request::Write { size: 7, count: 1 };
        for request in [
            read,
            write,
            Request::Echo { count: 7 },
            Request::BeSilent { ms: 9 },
            Request::Park,
            Request::StayOn { cpu: 1 },
        ] {
            assert_eq!(Request::decode(request.encode()).unwrap(), request);
        }
        assert!(Request::decode([0; REQUEST]).is_err());
        let bells = |sleeps| Some(Bells { rings: 3, sleeps });
        for bells in [None, bells(None), bells(Some(4))] {
            let answer = Answer {
                bytes: 1,
                wrong: 2,
                bells,
            };
            assert_eq!(Answer::decode(answer.encode()), answer);
        }
    }

    #[test]
    fn a_byte_that_is_lost_doubled_or_changed_is_found() {
        let sent = payload(64).repeat(3);
        let faults = |bytes: &[u8], reads: usize| {
            let mut checker = Checker::new(64);
            bytes.chunks(reads).for_each(|read| checker.look(read));
            checker.answer(None).check(sent.len() as u64)
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
