//! `cargo xtask test`: prepare, doc tests, loom, what is for Windows, then every other test in one run of
//! one runner, whose summary is the last thing printed.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::run::{self, Timings};
use crate::{loom, statically, tools, windows};

/// Programs that were built for tests, each with the variable by which they find it.
pub type Programs = Vec<(&'static str, PathBuf)>;

/// Runs it. With arguments, all but the runner is left out, and the arguments go to it.
pub fn run(arguments: &[String]) -> Result<()> {
    let mut timings = Timings::default();
    let mut programs = prepare(&mut timings)?;
    if arguments.is_empty() {
        doc_tests(&mut timings)?;
        timings.step("loom", || loom::run(&[]))?;
        programs.extend(windows::check(&mut timings)?);
    }
    timings.print();
    last(&programs, arguments)
}

/// Installs tools and builds the static binary. Outside CI the tests that need what could not
/// be had are skipped, and this says so.
pub fn prepare(timings: &mut Timings) -> Result<Programs> {
    timings.step("test tools", tools::install_missing)?;
    timings.step("guest kernel", tools::have_guest_kernel)?;
    let mut programs = Programs::new();
    for program in [&statically::COMMAND, &statically::AGENT] {
        match timings.step(program.variable, || program.build()) {
            Ok(binary) => programs.push((program.variable, binary)),
            Err(error) if run::in_ci() => return Err(error),
            Err(error) => eprintln!(
                "skipped: the tests that need {} in a container or guest: {error:#}",
                program.variable
            ),
        }
    }
    Ok(programs)
}

/// Runs the examples in the documentation of all libraries, which nextest cannot.
pub fn doc_tests(timings: &mut Timings) -> Result<()> {
    timings.step("doc tests", || {
        run::run(&mut run::cargo(&[
            "test",
            "--doc",
            "--workspace",
            "--all-features",
            "--quiet",
        ]))
    })
}

/// Runs all other tests. Nothing may be printed after this.
pub fn last(programs: &Programs, arguments: &[String]) -> Result<()> {
    let mut command = runner();
    let chosen =
        |argument: &String| argument.starts_with("-p") || argument.starts_with("--package");
    if !arguments.iter().any(chosen) {
        command.arg("--workspace");
    }
    command.arg("--all-features").args(arguments);
    run::run(command.envs(programs.iter().map(|(variable, path)| (variable, path))))
}

fn runner() -> Command {
    let has_nextest = run::cargo(&["nextest", "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    if has_nextest {
        run::cargo(&["nextest", "run"])
    } else {
        // The doc tests have run: name every other kind of target.
        run::cargo(&["test", "--lib", "--bins", "--tests", "--examples"])
    }
}
