//! The checksum of a file. Holes cost nothing.

use twox_hash::XxHash3_128;

/// The size of a block, in bytes.
const BLOCK: u64 = 1 << 20;

/// The running checksum of a file; see `FileEnd` in `copy.proto`.
///
/// It depends only on the content: a hole and the same number of zero bytes have the same checksum.
#[derive(Clone)]
pub(super) struct Sum {
    blocks: XxHash3_128,
    block: XxHash3_128,
    /// Whether the block contains a non-zero byte.
    nonzero: bool,
    position: u64,
}

impl Sum {
    pub(super) fn new() -> Self {
        Self {
            blocks: XxHash3_128::new(),
            block: XxHash3_128::new(),
            nonzero: false,
            position: 0,
        }
    }

    /// How many bytes the checksum covers.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Adds bytes.
    pub(super) fn data(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let left = BLOCK - self.position % BLOCK;
            let (now, rest) = bytes.split_at(bytes.len().min(left as usize));
            self.nonzero = self.nonzero || is_any_set(now);
            self.block.write(now);
            self.advance(now.len() as u64);
            bytes = rest;
        }
    }

    /// Adds zero bytes.
    pub(super) fn zeros(&mut self, mut count: u64) {
        const ZEROS: [u8; 4096] = [0; 4096];
        while count > 0 {
            let within = self.position % BLOCK;
            if within == 0 && count >= BLOCK {
                let whole = count / BLOCK * BLOCK;
                self.position += whole;
                count -= whole;
                continue;
            }
            let now = count.min(BLOCK - within).min(ZEROS.len() as u64);
            self.block.write(&ZEROS[..now as usize]);
            self.advance(now);
            count -= now;
        }
    }

    /// The checksum of all bytes so far.
    pub(super) fn get(&self) -> [u8; 16] {
        let mut last = self.clone();
        if !last.position.is_multiple_of(BLOCK) {
            last.end_block();
        }
        last.blocks.write(&last.position.to_le_bytes());
        last.blocks.finish_128().to_le_bytes()
    }

    fn advance(&mut self, count: u64) {
        self.position += count;
        if self.position.is_multiple_of(BLOCK) {
            self.end_block();
        }
    }

    fn end_block(&mut self) {
        if self.nonzero {
            let number = (self.position - 1) / BLOCK;
            self.blocks.write(&number.to_le_bytes());
            self.blocks.write(&self.block.finish_128().to_le_bytes());
        }
        self.block = XxHash3_128::new();
        self.nonzero = false;
    }
}

/// Whether any byte is not zero. It compiles to vector code and runs at memory speed.
fn is_any_set(bytes: &[u8]) -> bool {
    let mut chunks = bytes.chunks(512);
    chunks.any(|chunk| chunk.iter().fold(0, |all, byte| all | byte) != 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The checksum as the interface defines it, without optimizations.
    fn reference(content: &[u8]) -> [u8; 16] {
        let mut all = Vec::new();
        for (number, block) in content.chunks(BLOCK as usize).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                all.extend((number as u64).to_le_bytes());
                all.extend(XxHash3_128::oneshot(block).to_le_bytes());
            }
        }
        all.extend((content.len() as u64).to_le_bytes());
        XxHash3_128::oneshot(&all).to_le_bytes()
    }

    #[derive(Clone, Debug)]
    enum Run {
        Data(u8, usize),
        ZeroData(usize),
        Hole(usize),
    }

    fn run() -> impl Strategy<Value = Run> {
        let length = || prop_oneof![0usize..70_000, 900_000usize..2_200_000];
        prop_oneof![
            (any::<u8>(), length()).prop_map(|(byte, length)| Run::Data(byte, length)),
            length().prop_map(Run::ZeroData),
            length().prop_map(Run::Hole),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(hvsock_testkit::cases(24)))]
        #[test]
        fn the_checksum_depends_on_the_content_only(runs in prop::collection::vec(run(), 0..5)) {
            let mut sum = Sum::new();
            let mut content = Vec::new();
            for run in runs {
                let before = content.len();
                match run {
                    Run::Data(byte, length) => content.resize(before + length, byte),
                    Run::ZeroData(length) | Run::Hole(length) => content.resize(before + length, 0),
                }
                match run {
                    Run::Hole(length) => sum.zeros(length as u64),
                    _ => sum.data(&content[before..]),
                }
                prop_assert_eq!(sum.position(), content.len() as u64);
                prop_assert_eq!(sum.get(), reference(&content));
            }
        }
    }

    #[test]
    fn the_largest_hole_is_hashed_without_reading_it() {
        let mut sum = Sum::new();
        sum.zeros(i64::MAX as u64);
        assert_ne!(
            sum.get(),
            Sum::new().get(),
            "the size is part of the checksum"
        );
    }
}
