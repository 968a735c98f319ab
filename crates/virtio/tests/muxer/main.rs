//! The muxer between a guest and the owner of its links.
//!
//! `random` joins it with a plain model of the Linux driver, under virtual time and in any order of
//! events, and follows every byte.
//!
//! `PROPTEST_CASES=100000 cargo test --release -p hvsock-virtio --test muxer` asks longer.

mod device;
mod flows;
mod guest;
mod pair;
mod random;
