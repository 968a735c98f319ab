//! The muxer between a guest and the owner of its links.
//!
//! - `random` joins it with a model of the Linux driver, under virtual time and in random order of
//!   events, and checks every byte.
//! - `hostile` sends packets that no driver would send.
//! - `rules` covers the cases of the specification.
//! - `snapshot` replaces the muxer by one made from its snapshot, in runs of `random` and `hostile`.
//! - `fairness` measures the share and the latency of each of many busy connections.
//!
//! `PROPTEST_CASES=100000 cargo test --release -p hvsock-virtio --test muxer` runs more cases.

mod device;
mod fairness;
mod flows;
mod guest;
mod hostile;
// The test kit depends on this crate.
#[path = "../../../testkit/src/json_edits.rs"]
mod json_edits;
mod pair;
mod random;
mod recorded;
mod rules;
mod snapshot;

/// Number of random cases: `PROPTEST_CASES`, or `default`.
fn cases(default: u32) -> u32 {
    let cases = std::env::var("PROPTEST_CASES").ok();
    cases.map_or(default, |text| {
        text.parse().expect("PROPTEST_CASES is a number")
    })
}
