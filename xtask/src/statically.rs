//! The static `hvsock` that the container tests put into a rootfs with nothing else in it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// The variable by which tests find the binary.
pub const VARIABLE: &str = "HVSOCK_TEST_STATIC_BIN";

/// Builds `hvsock` without an interpreter or shared library, and returns where it is.
///
/// The target is the host's own, but it is named: only then do the flags keep away from procedural
/// macros, which cannot be linked statically. It has its own target folder, so that the flags
/// do not turn the main one over at each run.
pub fn build() -> Result<PathBuf> {
    let host = host_target()?;
    let folder = run::root().join("target/static");
    let mut flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    flags.push_str(" -Ctarget-feature=+crt-static");
    run::run(
        run::cargo(&[
            "build",
            "--package",
            "hvsock-cli",
            "--bin",
            "hvsock",
            "--target",
        ])
        .arg(&host)
        .env("RUSTFLAGS", flags.trim())
        .env("CARGO_TARGET_DIR", &folder),
    )?;
    let binary = folder.join(host).join("debug/hvsock");
    if !binary.is_file() {
        bail!("cargo built no {}", binary.display());
    }
    Ok(binary)
}

fn host_target() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc)
        .arg("-vV")
        .output()
        .context("cannot start rustc")?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        .context("`rustc -vV` names no host")
}
