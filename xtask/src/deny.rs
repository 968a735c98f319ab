//! `cargo xtask deny`: the rules of deny.toml for dependencies, held by cargo-deny.

use anyhow::{Result, bail};

use crate::run;

/// Runs it, or says how to install it.
pub fn run(arguments: &[String]) -> Result<()> {
    let installed = run::cargo(&["deny", "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !installed {
        bail!("cargo-deny is not installed: `cargo install cargo-deny --locked` does it");
    }
    let what: &[&str] = if arguments.is_empty() {
        &["check"]
    } else {
        &[]
    };
    run::run(
        run::cargo(&["deny", "--all-features"])
            .args(what)
            .args(arguments),
    )
}
