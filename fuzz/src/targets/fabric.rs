//! Sequences of operations on the fabric, each checked against the reference model of the property test.
//! The first four bytes are the seed of a case of that test. Every two further bytes are the seed of one
//! more operation, so the fuzzer can repeat, drop and exchange operations to reach new code.

#[path = "../../../crates/fabric/tests/agreement/coverage.rs"]
#[allow(dead_code, reason = "only the property test reads the coverage")]
mod coverage;
#[path = "../../../crates/fabric/tests/agreement/driver.rs"]
mod driver;
#[path = "../../../crates/fabric/tests/agreement/model/mod.rs"]
mod model;
#[path = "../../../crates/fabric/tests/agreement/ops.rs"]
mod ops;
#[path = "../../../crates/fabric/tests/agreement/resolve.rs"]
mod resolve;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::target::Seed;

/// Runs one sequence.
pub(crate) fn run(bytes: &[u8]) {
    let (first, rest) = bytes.split_at(bytes.len().min(4));
    let mut case = from_seed(first, &ops::case());
    let op = ops::op();
    case.ops
        .extend(rest.chunks_exact(2).map(|seed| from_seed(seed, &op)));
    driver::run(case, &mut coverage::Coverage::default());
}

/// Sequences of random operations: any bytes are one.
pub(crate) fn seeds() -> Vec<Seed> {
    super::random_scripts()
}

/// The value that a strategy generates from a seed.
fn from_seed<S: Strategy>(bytes: &[u8], strategy: &S) -> S::Value {
    let mut seed = [0; 32];
    seed[..bytes.len()].copy_from_slice(bytes);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let tree = strategy.new_tree(&mut runner);
    tree.expect("these strategies reject nothing").current()
}
