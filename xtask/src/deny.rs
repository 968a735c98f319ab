//! `cargo xtask deny`: checks the dependencies against deny.toml with cargo-deny.

use anyhow::{Result, bail};

use crate::run;

/// Runs cargo-deny, or names the command that installs it.
pub fn run(arguments: &[String]) -> Result<()> {
    let installed = run::cargo(&["deny", "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !installed {
        bail!("cargo-deny is not installed\nhelp: cargo install cargo-deny --locked");
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
