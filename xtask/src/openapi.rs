//! `cargo xtask openapi`: writes `docs/openapi.json`, the OpenAPI document of the control API.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::run;

/// Writes the document. A test of the broker fails while it is out of date.
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
        bail!("cannot generate the document: {}", output.status);
    }
    let path = run::root().join("docs/openapi.json");
    fs::write(&path, output.stdout).with_context(|| format!("cannot write {}", path.display()))
}
