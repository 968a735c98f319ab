//! Static programs: the `hvsock` that the container tests put into a rootfs with nothing else in it,
//! and the agent, as it ships.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// A program that is built statically for tests.
pub struct Program {
    package: &'static str,
    name: &'static str,
    profile: &'static str,
    /// The variable by which tests find the binary.
    pub variable: &'static str,
}

/// The command.
pub const COMMAND: Program = Program {
    package: "hvsock-cli",
    name: "hvsock",
    profile: "dev",
    variable: "HVSOCK_TEST_STATIC_BIN",
};

/// The agent, with the profile that it is shipped with, since its size and its memory are tested.
pub const AGENT: Program = Program {
    package: "hvsock-services",
    name: "hvsock-agent",
    profile: "agent",
    variable: "HVSOCK_TEST_STATIC_AGENT",
};

/// `cargo xtask agent`: builds the agent for guests, and says where it is.
pub fn agent(arguments: &[String]) -> Result<()> {
    if !arguments.is_empty() {
        bail!("`agent` takes no arguments");
    }
    let binary = AGENT.build()?;
    println!("{}", binary.display());
    Ok(())
}

impl Program {
    /// Builds it without an interpreter or shared library, and returns where it is.
    ///
    /// The target is the host's own, but it is named: only then do the flags keep away from procedural
    /// macros, which cannot be linked statically. It has its own target folder, so that the flags
    /// do not turn the main one over at each run.
    pub fn build(&self) -> Result<PathBuf> {
        let host = host_target()?;
        let folder = run::root().join("target/static");
        let mut flags = std::env::var("RUSTFLAGS").unwrap_or_default();
        flags.push_str(" -Ctarget-feature=+crt-static");
        run::run(
            run::cargo(&[
                "build",
                "--package",
                self.package,
                "--bin",
                self.name,
                "--profile",
                self.profile,
                "--target",
            ])
            .arg(&host)
            .env("RUSTFLAGS", flags.trim())
            .env("CARGO_TARGET_DIR", &folder),
        )?;
        let profile = match self.profile {
            "dev" => "debug",
            other => other,
        };
        let binary = folder.join(host).join(profile).join(self.name);
        if !binary.is_file() {
            bail!("cargo built no {}", binary.display());
        }
        Ok(binary)
    }
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
