//! The requirements of tests besides Rust, and the one rule for a missing one: outside CI the test prints
//! `skipped: …` on stderr and passes; with `CI=true` it fails.
//!
//! ```no_run
//! # use hvsock_testkit::require;
//! let Some(runc) = require::runc() else { return };
//! let Some(()) = require::root() else { return };
//! ```
//!
//! `cargo xtask test` installs missing programs if it may, so most tests never skip there. Plain
//! `cargo test` runs the tests that the machine allows.

use std::ffi::OsStr;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Environment variable with the path of a static `hvsock`. Set by `cargo xtask test`, which builds it.
pub const STATIC_HVSOCK: &str = "HVSOCK_TEST_STATIC_BIN";

/// Environment variable with the path of a static `hvsock-agent`, as it ships. Set by `cargo xtask test`,
/// which builds it.
pub const STATIC_AGENT: &str = "HVSOCK_TEST_STATIC_AGENT";

/// Environment variable with the path of vhost-device-vsock, if it is not where `cargo xtask bench vm` installs
/// it.
pub const VHOST_DEVICE_VSOCK: &str = "HVSOCK_TEST_VHOST_DEVICE_VSOCK";

/// Environment variable with the path of `hvsock.exe`. Set by `cargo xtask windows`, which builds it.
pub const WINDOWS_HVSOCK: &str = "HVSOCK_TEST_WINDOWS_BIN";

/// Environment variable with the folder of the build's programs, patched to use the AF_HYPERV shim.
/// `cargo xtask windows` sets it for test targets named `shim…`.
pub const SHIM: &str = "HVSOCK_TEST_SHIM";

/// The privileges of root.
#[cfg(target_os = "linux")]
pub fn root() -> Option<()> {
    let is_root = rustix::process::geteuid().is_root();
    is_root
        .then_some(())
        .or_else(|| absent("it needs root", in_ci()))
}

/// The path of an example program of this test's package. Plain `cargo test` builds it; `cargo test --test
/// NAME` does not.
pub fn example(package: &str, name: &str) -> Option<PathBuf> {
    found(built_example(package, name))
}

/// The path of runc, the OCI runtime that starts the tests' containers.
pub fn runc() -> Option<PathBuf> {
    program("runc", &["--version"])
}

/// The path of podman.
pub fn podman() -> Option<PathBuf> {
    program("podman", &["--version"])
}

/// The path of crun, podman's OCI runtime.
pub fn crun() -> Option<PathBuf> {
    program("crun", &["--version"])
}

/// The path of a Python 3 interpreter.
pub fn python3() -> Option<PathBuf> {
    program("python3", &["--version"])
}

/// The path of the Go toolchain.
pub fn go() -> Option<PathBuf> {
    program("go", &["version"])
}

/// The path of a statically linked `hvsock`, for a container with an empty rootfs.
pub fn static_hvsock() -> Option<PathBuf> {
    found(built(STATIC_HVSOCK, "test"))
}

/// The path of a statically linked `hvsock-agent`, for any guest and container.
pub fn static_agent() -> Option<PathBuf> {
    found(built(STATIC_AGENT, "test"))
}

/// The path of `hvsock.exe`, to run under Wine.
pub fn windows_hvsock() -> Option<PathBuf> {
    found(built(WINDOWS_HVSOCK, "windows"))
}

/// The folder of the build's programs, patched to use the AF_HYPERV shim.
pub fn shim() -> Option<PathBuf> {
    let folder = std::env::var_os(SHIM).map(PathBuf::from);
    found(folder.ok_or("it needs the AF_HYPERV shim (`cargo xtask windows`)"))
}

/// The path of OpenSSH's server, which has no option to probe. Its package brings the client and
/// `ssh-keygen`.
pub fn sshd() -> Option<PathBuf> {
    let sshd = PathBuf::from("/usr/sbin/sshd");
    let there = sshd.is_file();
    there
        .then_some(sshd)
        .or_else(|| absent("OpenSSH's server is not installed", in_ci()))
}

/// The path of vhost-device-vsock, a VMM's muxer that others wrote. No package has it, so the test skips
/// in CI, too.
pub fn vhost_device_vsock() -> Option<PathBuf> {
    const NAME: &str = "vhost-device-vsock";
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    let installed = root.map(|root| root.join("target").join(NAME).join("bin").join(NAME));
    let named = std::env::var_os(VHOST_DEVICE_VSOCK).map(PathBuf::from);
    let found = named.or(installed).filter(|path| path.is_file());
    of_this_machine(found.ok_or_else(|| {
        format!("{NAME} is not installed (`cargo xtask bench vm` does it, {VHOST_DEVICE_VSOCK} names another)")
    }))
}

/// The result of another search, whose error names the missing program and the package to install.
pub fn found<T>(result: Result<T, impl Display>) -> Option<T> {
    match result {
        Ok(found) => Some(found),
        Err(why) => absent(&why.to_string(), in_ci()),
    }
}

/// The path of a program on `PATH` or in the system's sbin folders that succeeds with the arguments `probe`.
pub fn program(name: &str, probe: &[&str]) -> Option<PathBuf> {
    find(name, probe).or_else(|| absent(&format!("`{name}` is not installed"), in_ci()))
}

/// A property of the machine that cannot be installed, such as a capability that a container lacks. Skips in
/// CI, too, where nothing could provide it.
pub fn of_this_machine<T>(result: Result<T, impl Display>) -> Option<T> {
    result.inspect_err(|why| eprintln!("skipped: {why}")).ok()
}

/// A program that an xtask task builds before the tests and names in an environment variable.
fn built(variable: &str, task: &str) -> Result<PathBuf, String> {
    named(variable, std::env::var_os(variable).as_deref(), task)
}

fn named(variable: &str, value: Option<&OsStr>, task: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(value.ok_or_else(|| {
        format!("{variable} is not set (`cargo xtask {task}` builds the binary and sets it)")
    })?);
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!(
            "{variable} is not the path of a file: {}",
            path.display()
        ))
    }
}

fn built_example(package: &str, name: &str) -> Result<PathBuf, String> {
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    // target/PROFILE/deps/TEST and target/PROFILE/examples/NAME
    let profile = test.parent().and_then(Path::parent);
    let path = profile.map(|folder| folder.join("examples").join(name));
    path.filter(|path| path.is_file()).ok_or_else(|| {
        format!("the example {name} is not built (`cargo build -p {package} --examples`)")
    })
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

/// Skips by returning `None`, or fails the test.
fn absent<T>(why: &str, in_ci: bool) -> Option<T> {
    assert!(!in_ci, "in CI nothing is skipped: {why}");
    eprintln!("skipped: {why}");
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_requirement_skips_outside_ci() {
        assert_eq!(absent::<()>("no such thing", false), None);
        assert_eq!(found(Ok::<_, String>(7)), Some(7));
        assert_eq!(find("a-program-that-does-not-exist", &[]), None);
    }

    #[test]
    #[should_panic(expected = "in CI nothing is skipped: no such thing")]
    fn a_missing_requirement_fails_in_ci() {
        absent::<()>("no such thing", true);
    }

    #[test]
    fn a_binary_named_in_the_environment_must_exist() {
        let why = named(STATIC_HVSOCK, None, "test").expect_err("not set");
        assert!(why.contains("HVSOCK_TEST_STATIC_BIN is not set"), "{why}");
        let why = named(STATIC_HVSOCK, Some("/no/such".as_ref()), "test").expect_err("not there");
        assert!(why.contains("is not the path of a file: /no/such"), "{why}");
        let this = std::env::current_exe().expect("this program");
        assert_eq!(
            named(STATIC_HVSOCK, Some(this.as_os_str()), "test"),
            Ok(this)
        );
    }

    #[test]
    fn a_program_that_fails_its_probe_counts_as_missing() {
        let this = std::env::current_exe().expect("this program");
        let this = this.to_str().expect("a path in Unicode");
        assert!(find(this, &["--list"]).is_some());
        assert_eq!(find(this, &["--no-such-option"]), None);
    }
}
