//! Runs other programs: prints each command first; an error names the whole command.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The workspace's root, where every command runs.
pub fn root() -> PathBuf {
    let xtask = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().map_or(xtask.clone(), Into::into)
}

/// Whether this is a CI run, in which no test may be skipped.
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// A `cargo` command in the workspace's root, of this program's toolchain.
pub fn cargo(arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    command
}

/// Prints the command on stderr and runs it to completion.
///
/// # Errors
///
/// If it cannot start or its exit status is not zero.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    eprintln!("$ {shown}");
    let status = command
        .status()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

/// The duration of each step, for one table before the last step.
#[derive(Default)]
pub struct Timings(Vec<(&'static str, f64)>);

impl Timings {
    /// Runs one step and records its duration.
    pub fn step<T>(&mut self, name: &'static str, body: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("== {name}");
        let start = Instant::now();
        let result = body().with_context(|| format!("step `{name}`"));
        self.0.push((name, start.elapsed().as_secs_f64()));
        result
    }

    /// Prints the table on stderr.
    pub fn print(&self) {
        for (name, seconds) in &self.0 {
            eprintln!("{seconds:8.1} s  {name}");
        }
    }
}

fn show(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.display(), value?.display())));
    let program = PathBuf::from(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let words = std::iter::once(name).chain(command.get_args());
    variables
        .chain(words.map(|word: &OsStr| word.display().to_string()))
        .collect::<Vec<_>>()
        .join(" ")
}
