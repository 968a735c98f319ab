//! The muxer between a guest and the owner of its links.
//!
//! `random` joins it with a plain model of the Linux driver, under virtual time and in any order of
//! events, and follows every byte; `hostile` sends what no driver would; `rules` goes through the
//! specification's cases; `fairness` counts what each of many busy connections gets, and when.
//!
//! `PROPTEST_CASES=100000 cargo test --release -p hvsock-virtio --test muxer` asks longer.

mod device;
mod fairness;
mod flows;
mod guest;
mod hostile;
mod pair;
mod random;
mod rules;

/// How many random cases are tried: few, unless more are asked for.
fn cases(usual: u32) -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok();
    asked.map_or(usual, |text| {
        text.parse().expect("PROPTEST_CASES is a number")
    })
}
