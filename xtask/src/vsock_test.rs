//! `cargo xtask vsock-test`: builds the Linux kernel's own vsock tests from source and runs them between two
//! real guests of one broker: under QEMU, or as `--guests` says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{run, tools};

/// The suite's folder in the kernel tree, and the folder of the headers that it includes.
const SUITE: &str = "tools/testing/vsock";
const INCLUDED: &str = "tools/include";

/// Runs the suite. `--source FOLDER` names a kernel tree (`tools/testing/vsock` suffices) to use instead of
/// Debian's. `--run` runs one half on this machine under `hvsock run`. All other arguments go to the program that runs the guests.
pub fn run(arguments: &[String]) -> Result<()> {
    let mut rest = Vec::new();
    let mut source = None;
    let mut hvsock = None;
    let mut given = arguments.iter();
    while let Some(word) = given.next() {
        if word == "--source" {
            let folder = given.next().context("--source takes a folder")?;
            source = Some(PathBuf::from(folder));
        } else if word == "--run" {
            hvsock = Some(command()?);
        } else {
            rest.push(word.clone());
        }
    }
    tools::install_for_suite()?;
    tools::have_guest_kernel()?;
    let tree = match source {
        Some(folder) => copied(&folder)?,
        None => unpacked()?,
    };
    let program = built(&tree)?;
    run::run(
        run::cargo(&["run", "--quiet", "--package", "hvsock-guests"])
            .args(["--example", "vsock_test", "--"])
            .arg(program)
            .args(
                hvsock
                    .iter()
                    .flat_map(|path| ["--run".as_ref(), path.as_os_str()]),
            )
            .args(rest),
    )
}

/// Builds the command `hvsock`.
fn command() -> Result<PathBuf> {
    run::run(&mut run::cargo(&[
        "build",
        "--quiet",
        "--package",
        "hvsock-cli",
        "--bin",
        "hvsock",
    ]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| run::root().join("target"), PathBuf::from);
    Ok(target.join("debug/hvsock"))
}

fn work() -> PathBuf {
    run::root().join("target/vsock-test")
}

/// Debian's source, unpacked once per version of the package.
fn unpacked() -> Result<PathBuf> {
    let archive = Path::new(tools::LINUX_SOURCE);
    let found = fs::metadata(archive).with_context(|| {
        format!(
            "{} does not exist\nhelp: apt-get install linux-source-6.12",
            archive.display()
        )
    })?;
    let tree = work().join("linux-source-6.12");
    let mark = tree.join("unpacked");
    let state = format!("{} {:?}", found.len(), found.modified()?);
    if fs::read_to_string(&mark).is_ok_and(|text| text == state) {
        return Ok(tree);
    }
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(work())?;
    run::run(
        Command::new("tar")
            .arg("--extract")
            .arg("--file")
            .arg(archive)
            .arg("--directory")
            .arg(work())
            .args([SUITE, INCLUDED].map(|folder| format!("linux-source-6.12/{folder}"))),
    )?;
    fs::write(mark, state)?;
    Ok(tree)
}

/// A copy, so that no build output lands in the user's tree.
fn copied(source: &Path) -> Result<PathBuf> {
    let suite = source.join(SUITE);
    if !suite.is_dir() {
        bail!("{} has no folder {SUITE}", source.display());
    }
    let tree = work().join("source");
    let _ = fs::remove_dir_all(&tree);
    for folder in [SUITE, INCLUDED] {
        let (from, to) = (source.join(folder), tree.join(folder));
        if from.is_dir() {
            fs::create_dir_all(&to)?;
            run::run(Command::new("cp").arg("-rT").arg(from).arg(to))?;
        }
    }
    Ok(tree)
}

/// Builds the suite statically, so that the guests need nothing else.
fn built(tree: &Path) -> Result<PathBuf> {
    let folder = tree.join(SUITE);
    let programs = ["vsock_test", "vsock_diag_test", "vsock_perf"];
    run::run(
        Command::new("make")
            .arg("--silent")
            .arg("--directory")
            .arg(&folder)
            .args(["LDFLAGS=-static", "CC=cc -w"])
            .args(programs),
    )?;
    Ok(folder.join(programs[0]))
}
