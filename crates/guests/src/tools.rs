//! Finding and running programs of the host.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The path of a program in `PATH` or in a system folder that may not be in it.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// The path of a program: that of an environment variable, or that of its name. On failure, why there is none.
pub fn program(variable: &str, name: &str) -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os(variable).filter(|value| !value.is_empty()) {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(format!("{variable} is not a file: {}", path.display()))
        };
    }
    find(name).ok_or_else(|| format!("{name} is not installed"))
}

/// Runs a program and returns its standard output. On failure the error quotes its standard error.
pub fn output(command: &mut Command) -> io::Result<Vec<u8>> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stderr = stderr.trim();
    Err(io::Error::other(format!(
        "{program}: {}{}{stderr}",
        output.status,
        if stderr.is_empty() { "" } else { ": " },
    )))
}

/// A command for the program at a path.
pub fn command(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}
