//! `cargo xtask windows`: builds the Windows crates on Debian and runs their tests under Wine.
//!
//! Debian's Rust builds them, with the standard library from source and MinGW's linker. DLLs that Wine lacks
//! are added ([`dll`]). A test under Wine shows that the code keeps to Windows' interfaces as Wine implements
//! them, and no more.
//!
//! With arguments it runs cargo for Windows: `cargo xtask windows test -p hvsock-sys NAME`.

mod c_examples;
mod cargo;
mod dll;
mod folders;
mod shim;
mod wine;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

pub use self::wine::run as wine;
use crate::run::{self, Timings};
use crate::tools;

/// The packages that build for Windows, tests included.
const PACKAGES: &[&str] = &[
    "hvsock",
    "hvsock-address",
    "hvsock-cli",
    "hvsock-control",
    "hvsock-endpoint",
    "hvsock-examples",
    "hvsock-fabric",
    "hvsock-hyperv",
    "hvsock-registry",
    "hvsock-sys",
    "hvsock-testkit",
    "hvsock-text",
    "hvsock-virtio",
];

/// The variable that names the Windows command to tests on Linux.
const VARIABLE: &str = "HVSOCK_TEST_WINDOWS_BIN";

/// Runs the task.
pub fn run(arguments: &[String]) -> Result<()> {
    if let Some((command, rest)) = arguments.split_first() {
        if tools::install_for_windows()? {
            dll::build()?;
            c_examples::build()?;
            run::run(cargo::for_windows(command)?.args(rest))?;
        }
        return Ok(());
    }
    let mut timings = Timings::default();
    if let Some((variable, command)) = check(&mut timings)? {
        timings.step("Windows: services from Linux and back", || {
            let mut test = run::cargo(&["test", "--package", "hvsock-cli", "--test", "cli"]);
            run::run(
                test.args(["--quiet", "--", "windows::"])
                    .env(variable, command),
            )
        })?;
    }
    timings.print();
    Ok(())
}

/// Builds and tests all packages. Returns the command for tests on Linux, or `None` if a tool is missing and
/// this may be skipped.
pub fn check(timings: &mut Timings) -> Result<Option<(&'static str, PathBuf)>> {
    if !timings.step("Windows: tools", tools::install_for_windows)? {
        return Ok(None);
    }
    timings.step("Windows: DLLs for Wine", dll::build)?;
    timings.step("Windows: examples in C", c_examples::build)?;
    timings.step("Windows: clippy", || {
        let mut command = cargo::for_windows("clippy")?;
        command.args(["--locked", "--all-targets", "--quiet"]);
        run::run(chosen(&mut command).args(["--", "--deny=warnings"]))
    })?;
    timings.step("Windows: documentation", || {
        let mut command = cargo::for_windows("doc")?;
        command.args(["--lib", "--no-deps", "--quiet"]);
        run::run(chosen(&mut command).env("RUSTDOCFLAGS", "-Dwarnings"))
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
    })?;
    Ok(Some((VARIABLE, for_linux()?)))
}

fn chosen(command: &mut Command) -> &mut Command {
    command.arg("--all-features");
    command.args(PACKAGES.iter().flat_map(|package| ["--package", package]))
}

/// Copies the command into a folder with the DLL that it needs under Wine, whose search starts there.
fn for_linux() -> Result<PathBuf> {
    let folder = folders::target().join("bin");
    fs::create_dir_all(&folder)?;
    let built = cargo::folder().join("hvsock.exe");
    for file in [&built, &dll::folder().join("bcryptprimitives.dll")] {
        let name = file.file_name().unwrap_or_default();
        fs::copy(file, folder.join(name))
            .with_context(|| format!("cannot copy {}", file.display()))?;
    }
    Ok(folder.join("hvsock.exe"))
}
