//! The programs beside Rust that tests need, as one table, and how they are installed.
//!
//! A new need is one line here. Tests themselves look for the program once more (see
//! `hvsock_testkit::require`), so they skip or fail by the same rule when run by hand.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::run;

/// One program that some tests need.
struct Tool {
    /// Debian's package.
    package: &'static str,
    /// A command that succeeds if it is installed.
    probe: &'static [&'static str],
    /// What is left out without it.
    needed_by: &'static str,
}

const TOOLS: &[Tool] = &[
    Tool {
        package: "runc",
        probe: &["runc", "--version"],
        needed_by: "the tests that start OCI containers",
    },
    Tool {
        package: "python3",
        probe: &["python3", "--version"],
        needed_by: "the test of the endpoint client in Python",
    },
];

/// Installs what is missing if this process may, and says what is left out if it may not. In CI
/// a tool that stays missing is an error.
pub fn install_missing() -> Result<()> {
    let mut missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let why = match apt_get() {
        Some(apt_get) => match install(&apt_get, &missing) {
            Ok(()) => "apt-get installed it, and yet it does not run".to_owned(),
            Err(error) => format!("{error:#}"),
        },
        None => "it can be installed only by root with apt-get".to_owned(),
    };
    missing.retain(|tool| !works(tool.probe));
    for tool in &missing {
        eprintln!(
            "skipped: {}, for want of `{}` ({why}; the Debian package is {})",
            tool.needed_by, tool.probe[0], tool.package
        );
    }
    if run::in_ci() && !missing.is_empty() {
        bail!("in CI no test may be skipped for want of a tool");
    }
    Ok(())
}

/// Whether this command can be run and succeeds. Its output is thrown away.
pub fn works(probe: &[&str]) -> bool {
    let [program, arguments @ ..] = probe else {
        return false;
    };
    // The sbin folders hold runc on Debian, and are not on every user's PATH.
    ["", "/usr/sbin/", "/sbin/"].iter().any(|folder| {
        Command::new(format!("{folder}{program}"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    })
}

fn missing() -> Vec<&'static Tool> {
    TOOLS.iter().filter(|tool| !works(tool.probe)).collect()
}

/// The `apt-get` that may install packages, if there is one and this process is root.
fn apt_get() -> Option<String> {
    let id = Command::new("id").arg("-u").output().ok()?;
    let root = String::from_utf8_lossy(&id.stdout).trim() == "0";
    (root && works(&["apt-get", "--version"])).then(|| "apt-get".to_owned())
}

fn install(apt_get: &str, tools: &[&Tool]) -> Result<()> {
    let command = |arguments: &[&str]| {
        let mut command = Command::new(apt_get);
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .args(["--quiet", "--quiet", "-o", "Acquire::Retries=3"])
            .args(arguments);
        command
    };
    run::run(&mut command(&["update"]))?;
    let packages: Vec<&str> = tools.iter().map(|tool| tool.package).collect();
    run::run(command(&["install", "--yes", "--no-install-recommends"]).args(packages))
}
