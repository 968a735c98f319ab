//! `cargo xtask loom`: checks the ring's protocol under every interleaving of two threads.
//!
//! The library is built with loom's atomics, so it has a separate target folder. It is optimised,
//! because the models run some hundred thousand times.

use anyhow::Result;

use crate::run;

/// Runs the models. Arguments are names of models, passed to the test program.
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
