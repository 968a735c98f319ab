//! The cargo command that builds for Windows on Debian.

use std::path::PathBuf;
use std::process::Command;

use super::folders;
use anyhow::{Context, Result};

/// The target that Debian's MinGW links.
const TARGET: &str = "x86_64-pc-windows-gnu";
/// The time limit of one test program under Wine, in seconds.
const LONGEST: &str = "600";

/// A `cargo` command for Windows, in the workspace's root, whose programs Wine runs.
///
/// All commands share one target folder and one set of flags, so that the standard library is built once:
/// Debian ships its source for this target, not a compiled one. `-Zbuild-std` needs a nightly compiler or
/// `RUSTC_BOOTSTRAP=1`.
pub fn for_windows(name: &str) -> Result<Command> {
    // The subcommand on PATH may belong to another toolchain.
    let program = match name {
        "clippy" => "/usr/bin/cargo-clippy",
        _ => "/usr/bin/cargo",
    };
    let this = std::env::current_exe().context("cannot find the path of this program")?;
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
        .env("CARGO_TARGET_DIR", folders::target())
        .env("RUSTC", "/usr/bin/rustc")
        .env("RUSTDOC", "/usr/bin/rustdoc")
        .env("RUSTC_BOOTSTRAP", "1");
    // Set by the toolchain that runs this program.
    for variable in ["LD_LIBRARY_PATH", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(variable);
    }
    Ok(command)
}

/// The folder of the built programs.
pub fn folder() -> PathBuf {
    folders::target().join(TARGET).join("debug")
}
