//! Cargo as it builds for Windows here.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

/// The target: what Debian's MinGW links.
const TARGET: &str = "x86_64-pc-windows-gnu";
/// The longest that one test program may take under Wine, in seconds.
const LONGEST: &str = "600";

/// A `cargo` command for Windows, in the workspace's root, whose programs Wine runs.
///
/// All of them share one target folder and one set of flags, so that the standard library is built
/// once: Debian has no compiled one for this target, but its source. That takes options which only
/// a nightly compiler has, or one that is told to be one.
pub fn for_windows(name: &str) -> Result<Command> {
    // The subcommand that `cargo` would find on PATH may be another toolchain's.
    let program = match name {
        "clippy" => "/usr/bin/cargo-clippy",
        _ => "/usr/bin/cargo",
    };
    let this = std::env::current_exe().context("where this program is")?;
    let mut command = Command::new(program);
    command
        .arg(name)
        .args(["--target", TARGET, "-Zbuild-std=std,panic_abort,test"])
        .arg("--config")
        .arg(format!(
            "target.{TARGET}.runner=[{:?}, \"wine\", \"--limit\", \"{LONGEST}\"]",
            this.display().to_string()
        ))
        .current_dir(crate::run::root())
        .env("CARGO", "/usr/bin/cargo")
        .env("CARGO_TARGET_DIR", super::folder())
        .env("RUSTC", "/usr/bin/rustc")
        .env("RUSTDOC", "/usr/bin/rustdoc")
        .env("RUSTC_BOOTSTRAP", "1");
    // Of the toolchain that runs this program.
    for variable in ["LD_LIBRARY_PATH", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(variable);
    }
    Ok(command)
}

/// Where its programs are.
pub fn folder() -> PathBuf {
    super::folder().join(TARGET).join("debug")
}
