//! Messages of a VMM that the broker reads before the crate vhost: memory tables.

use hvsock_broker::fuzzing::memory_table;

use crate::target::Seed;

/// Reads the bytes as a VMM's.
pub(crate) fn run(bytes: &[u8]) {
    memory_table(bytes);
}

/// A table without and with a region; its descriptors are missing.
pub(crate) fn seeds() -> Vec<Seed> {
    let message = |flags: u32, size: u32, regions: u32, body: &[u8]| {
        let words = [5_u32, flags, size, regions, 0];
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        [words.as_slice(), body].concat()
    };
    let region = [0, 1 << 20, 0x7f00_0000_0000_u64, 0].map(u64::to_ne_bytes);
    super::named([
        ("empty", message(1, 8, 0, &[])),
        ("region", message(9, 40, 1, region.as_flattened())),
        (
            "padded",
            message(1, 72, 1, &[region, [[0; 8]; 4]].as_flattened().concat()),
        ),
        ("short", message(1, 40, 1, &[])),
        ("reply", message(5, 8, 0, &[])),
    ])
}
