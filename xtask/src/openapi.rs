//! `cargo xtask openapi`: writes `docs/openapi.json`, what the control API says of itself.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::run;

/// Writes the document anew. A test of the broker fails while it differs.
pub fn run(_: &[String]) -> Result<()> {
    let arguments = [
        "run",
        "--quiet",
        "--package",
        "hvsock-broker",
        "--example",
        "openapi",
    ];
    let output = run::cargo(&arguments)
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the document could not be made: {}", output.status);
    }
    let path = run::root().join("docs/openapi.json");
    fs::write(&path, output.stdout).with_context(|| format!("cannot write {}", path.display()))
}
