//! What a test needs beside Rust, and the one rule for when it is not there: outside CI the
//! test says `skipped: …` on stderr and passes; with `CI=true` it fails.
//!
//! ```no_run
//! # use hvsock_testkit::require;
//! let Some(runc) = require::runc() else { return };
//! ```
//!
//! `cargo xtask test` installs what it can, so most tests never skip.

use std::ffi::OsStr;
use std::fmt::Display;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The variable that holds the path of a static `hvsock`; `cargo xtask test` builds it and sets it.
pub const STATIC_HVSOCK: &str = "HVSOCK_TEST_STATIC_BIN";

/// The variable that holds the path of a static `hvsock-agent`, as it ships; `cargo xtask test` builds it
/// and sets it.
pub const STATIC_AGENT: &str = "HVSOCK_TEST_STATIC_AGENT";

/// The variable that holds the path of `hvsock.exe`; `cargo xtask windows` builds it and sets it.
pub const WINDOWS_HVSOCK: &str = "HVSOCK_TEST_WINDOWS_BIN";

/// The variable that tells a test over the stand-in for AF_HYPERV in which folder it finds the programs
/// of its build, made to run over it, too; `cargo xtask windows` sets it for targets `stand_in…`.
pub const STAND_IN: &str = "HVSOCK_TEST_STAND_IN";

/// The path of runc, the OCI runtime that starts the tests' containers.
pub fn runc() -> Option<PathBuf> {
    program("runc", &["--version"])
}

/// The path of a Python 3 interpreter.
pub fn python3() -> Option<PathBuf> {
    program("python3", &["--version"])
}

/// The path of a statically linked `hvsock`, which runs in a container with nothing else in it.
pub fn static_hvsock() -> Option<PathBuf> {
    found(built(STATIC_HVSOCK, "test"))
}

/// The path of a statically linked `hvsock-agent`, which runs in any guest and container.
pub fn static_agent() -> Option<PathBuf> {
    found(built(STATIC_AGENT, "test"))
}

/// The path of `hvsock.exe`, which Wine runs.
pub fn windows_hvsock() -> Option<PathBuf> {
    found(built(WINDOWS_HVSOCK, "windows"))
}

/// The folder of the build's programs as they run over the stand-in for AF_HYPERV, as this one does.
pub fn stand_in() -> Option<PathBuf> {
    let folder = std::env::var_os(STAND_IN).map(PathBuf::from);
    found(folder.ok_or("it needs the stand-in for AF_HYPERV (`cargo xtask windows`)"))
}

/// The path of OpenSSH's server, which does not answer a probe; with it are its client and what
/// makes keys.
pub fn sshd() -> Option<PathBuf> {
    let sshd = PathBuf::from("/usr/sbin/sshd");
    let there = sshd.is_file();
    there
        .then_some(sshd)
        .or_else(|| absent("OpenSSH's server is not installed", in_ci()))
}

/// What somebody else has looked for, whose error says what is missing and what to install.
pub fn found<T>(looked: Result<T, impl Display>) -> Option<T> {
    match looked {
        Ok(found) => Some(found),
        Err(why) => absent(&why.to_string(), in_ci()),
    }
}

/// A program found on `PATH` or in the system's sbin folders that ends well with `probe`.
pub fn program(name: &str, probe: &[&str]) -> Option<PathBuf> {
    find(name, probe).or_else(|| absent(&format!("`{name}` is not installed"), in_ci()))
}

/// A program that a chore builds before the tests, which tells them by a variable where it is.
fn built(variable: &str, chore: &str) -> Result<PathBuf, String> {
    named(variable, std::env::var_os(variable).as_deref(), chore)
}

fn named(variable: &str, value: Option<&OsStr>, chore: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(value.ok_or_else(|| {
        format!("{variable} is not set (`cargo xtask {chore}` builds the binary and sets it)")
    })?);
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{variable} names no file: {}", path.display()))
    }
}

fn find(name: &str, probe: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|candidate| {
            Command::new(candidate)
                .args(probe)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        })
}

fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// Skips by returning nothing, or fails the test.
fn absent<T>(why: &str, in_ci: bool) -> Option<T> {
    assert!(!in_ci, "in CI nothing is skipped: {why}");
    eprintln!("skipped: {why}");
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_skipped_by_hand() {
        assert_eq!(absent::<()>("no such thing", false), None);
        assert_eq!(found(Ok::<_, String>(7)), Some(7));
        assert_eq!(find("a-program-that-nobody-has", &[]), None);
    }

    #[test]
    #[should_panic(expected = "in CI nothing is skipped: no such thing")]
    fn what_is_absent_fails_in_ci() {
        absent::<()>("no such thing", true);
    }

    #[test]
    fn a_binary_is_named_by_the_environment_and_must_be_there() {
        let why = named(STATIC_HVSOCK, None, "test").expect_err("not set");
        assert!(why.contains("HVSOCK_TEST_STATIC_BIN is not set"), "{why}");
        let why = named(STATIC_HVSOCK, Some("/no/such".as_ref()), "test").expect_err("not there");
        assert!(why.contains("names no file: /no/such"), "{why}");
        let this = std::env::current_exe().expect("this program");
        assert_eq!(
            named(STATIC_HVSOCK, Some(this.as_os_str()), "test"),
            Ok(this)
        );
    }

    #[test]
    fn a_program_that_fails_its_probe_is_absent() {
        let this = std::env::current_exe().expect("this program");
        let this = this.to_str().expect("a path in Unicode");
        assert!(find(this, &["--list"]).is_some());
        assert_eq!(find(this, &["--no-such-option"]), None);
    }
}
