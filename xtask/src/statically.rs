//! Static programs: `hvsock` for containers whose rootfs holds nothing else, and the agent as it ships.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// A program that is linked statically for tests.
pub struct Program {
    package: &'static str,
    name: &'static str,
    profile: &'static str,
    /// The arguments that select its features.
    features: &'static [&'static str],
    /// The environment variable that names the binary to the tests.
    pub variable: &'static str,
}

/// The command.
pub const COMMAND: Program = Program {
    package: "hvsock-cli",
    name: "hvsock",
    profile: "dev",
    features: &[],
    variable: "HVSOCK_TEST_STATIC_BIN",
};

/// The agent, in the profile that ships: tests check its size and memory.
pub const AGENT: Program = Program {
    package: "hvsock-services",
    name: "hvsock-agent",
    profile: "agent",
    features: &["--no-default-features", "--features", "guest"],
    variable: "HVSOCK_TEST_STATIC_AGENT",
};

/// `cargo xtask agent`: builds the agent for guests and prints its path.
pub fn agent(_: &[String]) -> Result<()> {
    let binary = AGENT.build()?;
    println!("{}", binary.display());
    Ok(())
}

impl Program {
    /// Builds the program without an interpreter or shared library, and returns its path.
    ///
    /// `--target` names the host explicitly. Otherwise the flags would also apply to procedural macros,
    /// which cannot be linked statically. A separate target folder keeps the flags from invalidating
    /// the main one at each run.
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
            .args(self.features)
            .env("RUSTFLAGS", flags.trim())
            .env("CARGO_TARGET_DIR", &folder),
        )?;
        let profile = match self.profile {
            "dev" => "debug",
            other => other,
        };
        let binary = folder.join(host).join(profile).join(self.name);
        if !binary.is_file() {
            bail!("cargo did not build {}", binary.display());
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
