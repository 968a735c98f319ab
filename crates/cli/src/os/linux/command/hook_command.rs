//! The hooks that container runtimes run, as command lines of this program.

use std::io;
use std::path::{Path, PathBuf};

/// The hooks: their names for OCI runtimes, and the subcommand of `hvsock oci-hook` for each.
pub const CREATE_RUNTIME: (&str, &str) = ("createRuntime", "create-runtime");
pub const POSTSTOP: (&str, &str) = ("poststop", "poststop");

/// The program and the arguments of a hook of the broker with the folder `run`, but for the last one, the
/// container's name.
///
/// # Errors
/// If the path of this program, or the folder's, is not UTF-8 or not known.
pub fn of_broker(run: &Path, (_, verb): (&str, &str)) -> io::Result<(PathBuf, Vec<String>)> {
    let program = std::env::current_exe()?;
    let text = |path: &Path| {
        let invalid = || io::Error::other(format!("{} is not UTF-8", path.display()));
        path.to_str().map(str::to_owned).ok_or_else(invalid)
    };
    text(&program)?;
    let run = text(run)?;
    let args = ["hvsock", "--dir", &run, "oci-hook", verb, "--name"];
    Ok((program, args.map(str::to_owned).into()))
}
