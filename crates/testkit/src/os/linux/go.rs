//! Go for tests: the toolchain with its caches in the build's target folder, and a static program that
//! knows nothing of hvsock.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{TempFolder, require};

/// Where Debian's packages of Go sources are.
const DEBIAN_SOURCES: &str = "/usr/share/gocode";

/// A command of the Go toolchain that works without a network and without a home folder. `None` without Go.
pub fn command() -> Option<Command> {
    let go = require::go()?;
    let mut command = Command::new(go);
    let caches = caches();
    command
        .env("GOCACHE", caches.join("build"))
        .env("GOPATH", caches.join("path"))
        .env("GOENV", "off")
        .env("GOFLAGS", "-mod=mod")
        .env("GOPROXY", "off")
        .env("GOTOOLCHAIN", "local")
        .env_remove("GOOS");
    Some(command)
}

/// A command of the Go toolchain that finds Debian's package of `library`, and this project's module at `module`.
/// `folder` must live as long as the command. `None` without Go or the library.
///
/// # Panics
///
/// If a link in `folder` cannot be made.
pub fn debian_command(library: &str, folder: &TempFolder, module: &Path) -> Option<Command> {
    let package = Path::new(DEBIAN_SOURCES).join("src").join(library);
    let missing = format!("Debian's package of the Go library {library} is not installed");
    require::found(package.is_dir().then_some(()).ok_or(missing))?;
    let parent = folder.join("src/hvsock.dev");
    std::fs::create_dir_all(&parent).expect("a folder");
    std::os::unix::fs::symlink(module, parent.join("go")).expect("a link");
    let mut paths = folder.path().as_os_str().to_owned();
    paths.push(":");
    paths.push(DEBIAN_SOURCES);
    let mut command = command()?;
    command
        .env("CGO_ENABLED", "0")
        .env("GO111MODULE", "off")
        .env("GOPATH", paths)
        .env_remove("GOFLAGS");
    Some(command)
}

/// Builds `programs/vsock.go`, a static client and server with mdlayher/vsock, in `folder`. `None` without Go
/// or this library.
///
/// # Panics
///
/// If the program does not build.
pub fn vsock_program(folder: &Path) -> Option<PathBuf> {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = crate_folder.join("programs/vsock.go");
    let program = folder.join("vsock");
    let own = TempFolder::new();
    let mut build = debian_command("github.com/mdlayher/vsock", &own, crate_folder)?;
    build
        .arg("build")
        .arg("-o")
        .args([program.as_os_str(), source.as_os_str()]);
    let output = build.output().expect("go runs");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "go build: {words}");
    Some(program)
}

/// A folder in the target folder, or else in the system's one for temporary files.
fn caches() -> PathBuf {
    let test = std::env::current_exe().ok();
    let target = test.as_deref().and_then(|test| {
        let is_profile = |folder: &&Path| folder.file_name() == Some(OsStr::new("deps"));
        test.ancestors().find(is_profile)?.ancestors().nth(2)
    });
    match target {
        Some(target) => target.join("go"),
        None => std::env::temp_dir().join("hvsock-go"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_go_program_with_vsock_is_static() {
        let folder = TempFolder::new();
        let Some(program) = vsock_program(folder.path()) else {
            return;
        };
        let bytes = std::fs::read(program).expect("its file");
        let needs_a_loader = bytes.windows(8).any(|bytes| bytes == b"ld-linux");
        assert!(!needs_a_loader);
    }
}
