//! `cargo xtask python`: builds the accelerator of the Python package, and runs the package's tests with and without it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::run;

/// The environment variable with the folder of the accelerator's module, for tests and benches.
pub const VARIABLE: &str = "HVSOCK_TEST_ACCELERATOR";

/// Builds the accelerator and runs the tests of the Python package, with ARGS for the test program.
pub fn run(arguments: &[String]) -> Result<()> {
    let folder = build("dev")?;
    run::run(
        run::cargo(&["test", "--package", "hvsock-examples", "--test", "python"])
            .arg("--")
            .args(arguments)
            .env(VARIABLE, folder),
    )
}

/// Builds the accelerator without maturin and returns the folder of its module. It has a target folder of its own, since
/// it is not in the workspace.
pub fn build(profile: &str) -> Result<PathBuf> {
    let target = run::root().join("target/python");
    run::run(
        run::cargo(&["build", "--locked", "--quiet", "--profile", profile])
            .args(["--manifest-path", "python/accelerator/Cargo.toml"])
            .arg("--target-dir")
            .arg(&target)
            // This program's own settings of cargo are those of the workspace.
            .env_remove("CARGO_TARGET_DIR"),
    )?;
    let output = if profile == "dev" { "debug" } else { profile };
    let library = target.join(output).join("libhvsock_accelerator.so");
    let folder = target.join(output).join("module");
    fs::create_dir_all(&folder)?;
    // The name that Python looks for. A process that has the old file keeps it.
    let module = folder.join("hvsock_accelerator.abi3.so");
    let _ = fs::remove_file(&module);
    fs::copy(&library, &module).with_context(|| format!("no {}", library.display()))?;
    Ok(folder)
}
