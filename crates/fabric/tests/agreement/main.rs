//! Model test: compares the fabric with a second, brute-force implementation of its rules.
//!
//! Both get the same random trees, registries, states and sequences of events. They must agree on every
//! result, on the listener and partition that a connect reaches, on the effects of every change, and on
//! the resulting state. Every explanation must match the result of the request. At the end, every row
//! of the address table and every refusal must have occurred.
//!
//! `snapshot` runs the same sequences twice, and replaces the fabric by one made from its snapshot in
//! the second run.
//!
//! `PROPTEST_CASES=100000 cargo test --release -p hvsock-fabric --test agreement -- --nocapture`
//! runs more cases and prints the coverage.

mod composed;
mod coverage;
mod driver;
mod model;
mod ops;
mod resolve;
mod snapshot;

use std::cell::RefCell;

use proptest::test_runner::{Config, TestRunner};

#[test]
fn the_fabric_agrees_with_a_brute_force_model_of_its_rules() {
    const CASES: u32 = 1500;
    let cases = hvsock_testkit::cases(CASES);
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    });
    let coverage = RefCell::new(coverage::Coverage::default());
    let outcome = runner.run(&ops::case(), |case| {
        driver::run(case, &mut coverage.borrow_mut());
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    let (text, missing) = coverage.borrow().report();
    println!("{text}");
    // A manual run with few cases need not cover everything.
    if cases >= CASES {
        assert!(missing.is_empty(), "never reached: {missing:#?}");
    }
}
