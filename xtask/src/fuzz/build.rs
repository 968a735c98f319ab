//! The instrumented program.
//!
//! Cargo calls xtask in rustc's place ([`is_rustc`]), which adds the instrumentation to the crates that read what
//! others send: instrumented code of a runtime or of a test library would only slow each input down.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::run;

/// Set for the processes that cargo takes for rustc.
const VARIABLE: &str = "HVSOCK_XTASK_RUSTC";

/// The crates of others that are instrumented: parsers.
const PARSERS: [&str; 9] = [
    "h2",
    "httparse",
    "libfuzzer_sys",
    "prost",
    "serde_json",
    "toml",
    "toml_edit",
    "toml_parser",
    "winnow",
];

/// The instrumentation, which is that of cargo-fuzz: coverage by edges and comparisons, and AddressSanitizer.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Zsanitizer=address",
];

/// Whether this process is one that cargo takes for rustc.
pub fn is_rustc() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Runs rustc, with instrumentation for some crates.
pub fn as_rustc() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(rustc) = arguments.next() else {
        return ExitCode::FAILURE;
    };
    let arguments: Vec<OsString> = arguments.collect();
    let mut command = Command::new(rustc);
    if is_instrumented(&arguments) {
        command.args(FLAGS);
    }
    match command.args(&arguments).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: cannot run rustc: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the crate that these arguments compile is one of the project or a parser.
fn is_instrumented(arguments: &[OsString]) -> bool {
    let mut pairs = arguments.iter().zip(arguments.iter().skip(1));
    let name = pairs.find_map(|(flag, name)| (flag == OsStr::new("--crate-name")).then_some(name));
    let name = name.and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with("hvsock") || PARSERS.contains(&name)
}

/// Builds the program. Returns its path.
pub fn build() -> Result<PathBuf> {
    let folder = run::root().join("target/fuzz");
    // Cargo does not see these flags, so what was built with others must go.
    let (flags, file) = (format!("{FLAGS:?} {PARSERS:?}"), folder.join("flags"));
    let build = folder.join("build");
    if fs::read_to_string(&file).is_ok_and(|known| known != flags) && build.exists() {
        fs::remove_dir_all(&build)?;
    }
    fs::create_dir_all(&folder)?;
    fs::write(&file, flags)?;
    let target = host()?;
    let mut command = run::cargo(&[
        "build",
        "--package=hvsock-fuzz",
        "--bin=hvsock-fuzz",
        "--profile=fuzz",
        "--target",
        &target,
        "--target-dir",
    ]);
    command
        .arg(&build)
        // The sanitizer is not stable; the code is.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC_WRAPPER", std::env::current_exe()?)
        .env(VARIABLE, "1")
        .env("RUSTFLAGS", "--cfg fuzzing");
    run::run(&mut command)?;
    Ok(build.join(target).join("fuzz/hvsock-fuzz"))
}

/// The target of this machine. Naming it keeps the flags from build scripts and macros.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output();
    let output = output.context("cannot run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .context("rustc does not name its host")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_projects_crates_and_parsers_are_instrumented_and_build_scripts_are_not() {
        let is = |words: &str| {
            let words: Vec<OsString> = words.split(' ').map(OsString::from).collect();
            is_instrumented(&words)
        };
        assert!(is("--crate-name hvsock_broker --edition=2024 src/lib.rs"));
        assert!(is("--crate-name hvsock --edition=2024"));
        assert!(is("--edition=2024 --crate-name httparse"));
        for other in [
            "--crate-name build_script_build x",
            "--crate-name tokio",
            "-vV",
            "",
        ] {
            assert!(!is(other), "{other}");
        }
    }
}
