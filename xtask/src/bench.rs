//! `cargo xtask bench NAME`: runs one bench, a binary of the package in `bench/`.
//!
//! A bench is one file, `bench/src/bin/NAME.rs`. Its first line, `//! …`, describes it and is shown in
//! the list.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::{python, run};

const PACKAGE: &str = "hvsock-bench";

/// Runs the bench that the first argument names with the other arguments. Without arguments, lists all.
///
/// Benches use the profile `dist`, which is what packages ship.
pub fn run(arguments: &[String]) -> Result<()> {
    let Some((name, rest)) = arguments.split_first() else {
        for (name, about) in benches()? {
            println!("{name:<12} {about}");
        }
        return Ok(());
    };
    let known = benches()?;
    if !known.iter().any(|(known, _)| known == name) {
        let names: Vec<&str> = known.iter().map(|(known, _)| known.as_str()).collect();
        bail!("no bench {name:?}; the benches are: {}", names.join(", "));
    }
    let nested = name == "vm" && rest.iter().any(|argument| argument == "--nested");
    if name == "vm" && !nested {
        install_peer()?;
    }
    if name == "exec" || nested {
        build(&["--package", "hvsock-cli", "--bin", "hvsock"])?;
        build(&["--package", "hvsock-services", "--bin", "hvsock-agent"])?;
    }
    if name == "run" {
        build(&["--package", "hvsock-cli", "--bin", "hvsock"])?;
        build(&["--package", "hvsock-preload"])?;
    }
    let mut environment = Vec::new();
    if name == "python" {
        environment.push((python::VARIABLE, python::build("release")?));
    }
    run::run(
        run::cargo(&["run", "--profile", "dist", "--quiet"])
            .envs(environment)
            .args(["--package", PACKAGE, "--bin", name])
            .arg("--")
            .args(rest),
    )
}

/// Installs the peer device, in this exact version, under `target/`.
fn install_peer() -> Result<()> {
    const PEER: &str = "vhost-device-vsock";
    let folder = run::root().join("target").join(PEER);
    if folder.join("bin").join(PEER).is_file() {
        return Ok(());
    }
    run::run(
        run::cargo(&[
            "install",
            "--quiet",
            "--locked",
            PEER,
            "--version",
            "0.3.0",
            "--root",
        ])
        .arg(folder),
    )
}

/// Builds a program that the bench starts, or a library that it loads, beside it.
fn build(what: &[&str]) -> Result<()> {
    run::run(run::cargo(&["build", "--profile", "dist", "--quiet"]).args(what))
}

/// The name and first line of each bench, sorted by name.
fn benches() -> Result<Vec<(String, String)>> {
    let folder = run::root().join("bench/src/bin");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("no benches in {}", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let (Some(name), Some("rs")) = (
            path.file_stem().and_then(|stem| stem.to_str()),
            path.extension().and_then(|extension| extension.to_str()),
        ) else {
            continue;
        };
        let text = fs::read_to_string(&path)?;
        let about = text.lines().next().unwrap_or_default();
        found.push((
            name.to_owned(),
            about.trim_start_matches("//!").trim().to_owned(),
        ));
    }
    found.sort();
    Ok(found)
}
