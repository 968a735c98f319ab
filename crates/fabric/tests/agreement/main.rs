//! The fabric against a second, brute-force reading of DESIGN's rules.
//!
//! Random trees, registries, states and orders of events go to both, and both must agree on every
//! verdict, on the listener and partition that a connect reaches, on what a change cuts, suspends
//! and resumes, and on what is there afterwards. Every explanation must agree with what then
//! happens. At the end, every row of the table and every refusal must have been seen.
//!
//! `PROPTEST_CASES=100000 cargo test --release -p hvsock-fabric --test agreement -- --nocapture`
//! runs more of it and shows the tally.

mod driver;
mod ops;
mod reading;
mod tally;

use std::cell::RefCell;

use proptest::test_runner::{Config, TestRunner};

#[test]
fn the_fabric_and_a_plain_reading_of_its_rules_agree() {
    const CASES: u32 = 1500;
    let asked = std::env::var("PROPTEST_CASES").ok();
    let cases = asked.map_or(CASES, |text| {
        text.parse().expect("PROPTEST_CASES is a number")
    });
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    });
    let tally = RefCell::new(tally::Tally::default());
    let outcome = runner.run(&ops::case(), |case| {
        driver::run(case, &mut tally.borrow_mut());
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    let (text, missing) = tally.borrow().report();
    println!("{text}");
    // A handful of cases asked for by hand need not reach everything.
    if cases >= CASES {
        assert!(missing.is_empty(), "never reached: {missing:#?}");
    }
}
