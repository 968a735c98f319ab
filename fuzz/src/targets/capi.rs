//! Texts that a C program passes to the library.

use hvsock_capi::abi::fuzzing::texts;

use super::vectors;
use crate::target::Seed;

/// Calls the functions.
pub(crate) fn run(bytes: &[u8]) {
    texts(bytes);
}

/// Addresses of the vectors, and pairs of a partition and a service.
pub(crate) fn seeds() -> Vec<Seed> {
    let texts = vectors::texts(vectors::ADDRESSES, "text").into_iter();
    let pairs = super::named([
        ("pair", b"parent\0HV Socket Demo\0\x20".to_vec()),
        ("invalid", b"\xff\xfe\0web\0\x01".to_vec()),
        ("address", [&[34, 0, 0, 0][..], &[7; 32]].concat()),
    ]);
    texts.chain(pairs).collect()
}
