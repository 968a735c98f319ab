//! Programs of the host, and the running of those that end soon by themselves.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The path of a program on `PATH` or in one of the system's folders that not everyone's has.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// What a program prints. Its failure is an error that quotes what it said.
pub fn output(command: &mut Command) -> io::Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    Err(io::Error::other(format!(
        "{program}: {}{}{said}",
        output.status,
        if said.is_empty() { "" } else { ": " },
    )))
}

/// A command for the program of this path.
pub fn command(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}
