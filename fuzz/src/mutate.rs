//! Random variations of inputs, for runs without a fuzzer. The same seed gives the same variations.

/// Numbers at which arithmetic and limits end.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    i64::MAX as u64,
    u64::MAX,
];

/// Makes variations of inputs.
#[derive(Debug)]
pub struct Mutator {
    state: u64,
}

impl Mutator {
    /// A sequence of variations.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A random number below `below`, or 0. The generator is SplitMix64.
    pub fn below(&mut self, below: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        usize::try_from(word % below.max(1) as u64).unwrap_or_default()
    }

    /// A variation of one of `inputs`, which has at most `max` bytes.
    pub fn variation(&mut self, inputs: &[&[u8]], max: usize) -> Vec<u8> {
        let chosen = |it: &mut Self| inputs.get(it.below(inputs.len())).copied().unwrap_or(&[]);
        let mut bytes = chosen(self).to_vec();
        for _ in 0..=self.below(4) {
            let other = chosen(self);
            self.edit(&mut bytes, other);
        }
        bytes.truncate(max);
        bytes
    }

    fn edit(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        let length = bytes.len();
        let at = self.below(length + 1);
        let end = (at + self.below(16)).min(length);
        match self.below(9) {
            0 if at < length => bytes[at] ^= 1 << self.below(8),
            1 if at < length => bytes[at] = self.below(256) as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            5 => {
                let from = self.below(other.len() + 1);
                bytes.truncate(at);
                bytes.extend(other.get(from..).unwrap_or_default());
            }
            6 => {
                let from = self.below(other.len() + 1);
                let to = (from + self.below(32)).min(other.len());
                let part = other.get(from..to).unwrap_or_default().to_vec();
                bytes.splice(at..at, part);
            }
            7 => {
                let edge = EDGES[self.below(EDGES.len())];
                let size = 1 << self.below(4);
                let mut word = edge.to_le_bytes()[..size].to_vec();
                if self.below(2) == 0 {
                    word.reverse();
                }
                let end = (at + size).min(length);
                bytes.splice(at..end, word);
            }
            _ => {
                let word = (0..self.below(8)).map(|_| self.below(256) as u8);
                let word: Vec<u8> = word.collect();
                bytes.splice(at..at, word);
            }
        }
    }
}
