//! `cargo xtask windows`: everything of the project that is for Windows, built here and run here.
//!
//! Debian's Rust builds it, with the standard library from its source and MinGW's linker; Wine runs
//! it. What Wine lacks is added as DLLs ([`dll`]). A test under Wine shows that the code keeps to
//! Windows' interfaces as Wine has them, and no more.
//!
//! With arguments it is `cargo` for Windows: `cargo xtask windows test -p hvsock-sys NAME`.

mod cargo;
mod dll;
mod stand_in;
mod wine;

use std::path::PathBuf;

use anyhow::Result;

pub use self::wine::run as wine;
use crate::run::{self, Timings};
use crate::tools;

/// What is for Windows, tests included.
const PACKAGES: &[&str] = &[
    "hvsock-address",
    "hvsock-control",
    "hvsock-endpoint",
    "hvsock-fabric",
    "hvsock-hyperv",
    "hvsock-registry",
    "hvsock-sys",
    "hvsock-testkit",
    "hvsock-virtio",
];

/// Their features.
const FEATURES: &str = "hvsock-address/serde,hvsock-registry/store";

/// Runs it.
pub fn run(arguments: &[String]) -> Result<()> {
    if let Some((command, rest)) = arguments.split_first() {
        if !tools::install_for_windows()? {
            return Ok(());
        }
        dll::build()?;
        return run::run(cargo::for_windows(command)?.args(rest));
    }
    let mut timings = Timings::default();
    check(&mut timings)?;
    timings.print();
    Ok(())
}

/// Builds and tests all of it. Where it may be skipped for want of a tool, there is nothing more to
/// say.
pub fn check(timings: &mut Timings) -> Result<()> {
    if !timings.step("Windows: tools", tools::install_for_windows)? {
        return Ok(());
    }
    timings.step("Windows: DLLs for Wine", dll::build)?;
    timings.step("Windows: clippy", || {
        let mut command = cargo::for_windows("clippy")?;
        command.args(["--locked", "--all-targets", "--quiet"]);
        run::run(chosen(&mut command).args(["--", "--deny=warnings"]))
    })?;
    timings.step("Windows: build", || {
        let mut command = cargo::for_windows("test")?;
        command.args(["--all-targets", "--no-run", "--quiet"]);
        run::run(chosen(&mut command))
    })?;
    let _ended = timings.step("Windows: Wine's folder", wine::begin)?;
    timings.step("Windows: tests under Wine", || {
        let mut command = cargo::for_windows("test")?;
        command.args(["--all-targets", "--no-fail-fast"]);
        run::run(chosen(&mut command).args(["--", "--quiet"]))
    })
}

fn chosen(command: &mut std::process::Command) -> &mut std::process::Command {
    command.args(["--features", FEATURES]);
    command.args(PACKAGES.iter().flat_map(|package| ["--package", package]))
}

/// Where all of it is built.
fn folder() -> PathBuf {
    run::root().join("target/windows")
}
