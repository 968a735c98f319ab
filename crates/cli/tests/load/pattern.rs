//! The bytes of one direction of a stream.

/// Bytes that follow from their positions, so that one that is lost, doubled or swapped is seen at once.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    seed: u64,
    at: u64,
}

impl Pattern {
    pub fn new(seed: u64) -> Self {
        Self { seed, at: 0 }
    }

    /// The number of bytes so far.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The next bytes, which count once they are [taken](Self::take).
    pub fn fill(&self, buffer: &mut [u8]) {
        let first = word(self.seed, self.at / 8).to_le_bytes();
        let first = &first[(self.at % 8) as usize..];
        let (begin, rest) = buffer.split_at_mut(first.len().min(buffer.len()));
        begin.copy_from_slice(&first[..begin.len()]);
        for (part, index) in rest.chunks_mut(8).zip(self.at / 8 + 1..) {
            let word = word(self.seed, index).to_le_bytes();
            part.copy_from_slice(&word[..part.len()]);
        }
    }

    pub fn take(&mut self, count: usize) {
        self.at += count as u64;
    }

    /// Compares the next bytes.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut expected = vec![0; bytes.len()];
        self.fill(&mut expected);
        if expected != bytes
            && let Some(at) = bytes.iter().zip(&expected).position(|(a, b)| a != b)
        {
            let found = bytes.get(at..).unwrap_or_default();
            return Err(format!(
                "byte {} is another one; {}",
                self.at + at as u64,
                self.place_of(found)
            ));
        }
        self.take(bytes.len());
        Ok(())
    }

    /// Where bytes would be right: before the position they are doubled, after it others are lost.
    fn place_of(&self, found: &[u8]) -> String {
        let Some(found) = found.get(..16) else {
            return "too few follow to tell their place".into();
        };
        let near = self.at.saturating_sub(1 << 20)..self.at + (1 << 22);
        let mut expected = [0; 16];
        for at in near {
            Self { at, ..*self }.fill(&mut expected);
            if expected == *found {
                return format!("it is byte {at} of the same direction");
            }
        }
        "it is of nowhere near".into()
    }
}

/// Of splitmix64.
fn word(seed: u64, index: u64) -> u64 {
    let mut word = (seed ^ index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
