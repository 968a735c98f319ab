//! `cargo xtask test`: prepares, then runs doc tests, loom, the Windows tests, and last every other test
//! in one run of one test runner, whose summary is printed last.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::run::{self, Timings};
use crate::{loom, python, statically, tools, windows};

/// Programs built for tests, each with the environment variable that names it.
pub type Programs = Vec<(&'static str, PathBuf)>;

/// Runs all tests. With arguments, runs only the test runner and passes them to it.
pub fn run(arguments: &[String]) -> Result<()> {
    let mut timings = Timings::default();
    plan(arguments);
    let mut programs = prepare(&mut timings)?;
    if arguments.is_empty() {
        doc_tests(&mut timings)?;
        timings.step("loom", || loom::run(&[]))?;
        programs.extend(windows::check(&mut timings)?);
    }
    timings.print();
    last(&programs, arguments)
}

/// Prints the steps before the first one runs.
fn plan(arguments: &[String]) {
    eprintln!("plan:");
    eprintln!("  1. install missing test tools{}", tools::install_note());
    eprintln!("  2. find or fetch a kernel for real guests");
    eprintln!("  3. build static hvsock and hvsock-agent for containers and guests");
    if arguments.is_empty() {
        eprintln!("  4. doc tests; 5. loom; 6. Windows: clippy, documentation, tests under Wine");
        eprintln!(
            "  7. all other tests; plain `cargo test --workspace` runs those it can without 1 to 6"
        );
    } else {
        eprintln!("  4. the chosen tests: {}", arguments.join(" "));
    }
}

/// Installs tools and builds the static programs. Outside CI, a missing tool is reported and its tests
/// are skipped.
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
    match timings.step(python::VARIABLE, || python::build("dev")) {
        Ok(folder) => programs.push((python::VARIABLE, folder)),
        Err(error) if run::in_ci() => return Err(error),
        Err(error) => eprintln!("skipped: the tests of the Python accelerator: {error:#}"),
    }
    Ok(programs)
}

/// Runs the doc tests of all libraries, which nextest cannot.
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

/// Runs all other tests. Nothing may be printed after them.
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
        // The doc tests have run already: name every other kind of target.
        run::cargo(&["test", "--lib", "--bins", "--tests", "--examples"])
    }
}
