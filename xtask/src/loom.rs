//! `cargo xtask loom`: the ring's protocol under every interleaving of two threads. The library is
//! built with loom's atomics in the place of the processor's, so in a folder of its own, and with
//! optimisation: it is run some hundred thousand times.

use anyhow::Result;

use crate::run;

/// Runs it. Arguments go to the test program: names of models.
pub fn run(arguments: &[String]) -> Result<()> {
    let folder = run::root().join("target/loom");
    let mut command = run::cargo(&["test", "--package", "hvsock-ring", "--lib", "--target-dir"]);
    command
        .arg(folder)
        .args(["--", "loom_tests"])
        .args(arguments)
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "2");
    run::run(&mut command)
}
