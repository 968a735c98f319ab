//! Sequences of operations on the fabric, checked after each against the plain reading of its
//! rules that the property test uses. The first four bytes are the number of a case of that
//! test, each two that follow the number of one more operation: so the fuzzer can repeat, drop
//! and exchange operations in search of the sequences that reach new code.

#![no_main]

#[path = "../../crates/fabric/tests/agreement/driver.rs"]
mod driver;
#[path = "../../crates/fabric/tests/agreement/ops.rs"]
mod ops;
#[path = "../../crates/fabric/tests/agreement/reading/mod.rs"]
mod reading;
#[path = "../../crates/fabric/tests/agreement/tally.rs"]
#[allow(dead_code, reason = "the property test reports what it reached")]
mod tally;

use libfuzzer_sys::fuzz_target;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

fuzz_target!(|bytes: &[u8]| {
    let (first, rest) = bytes.split_at(bytes.len().min(4));
    let mut case = numbered(first, &ops::case());
    let op = ops::op();
    case.ops
        .extend(rest.chunks_exact(2).map(|number| numbered(number, &op)));
    driver::run(case, &mut tally::Tally::default());
});

/// The value that chance would choose if it were this number.
fn numbered<S: Strategy>(number: &[u8], strategy: &S) -> S::Value {
    let mut seed = [0; 32];
    seed[..number.len()].copy_from_slice(number);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let tree = strategy.new_tree(&mut runner);
    tree.expect("no strategy here rejects anything").current()
}
