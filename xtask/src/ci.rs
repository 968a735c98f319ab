//! `cargo xtask ci`: every check that must pass before a change is merged.

use anyhow::Result;

use crate::run::{self, Timings};
use crate::{loom, test, vsock_test, windows};

/// Runs all checks. The tests run last, so that their summary ends the output. The durations of the earlier
/// steps are printed before it.
pub fn run(_: &[String]) -> Result<()> {
    let mut timings = Timings::default();
    timings.step("format", || {
        run::run(&mut run::cargo(&["fmt", "--all", "--check"]))
    })?;
    // The first step that resolves dependencies fails if the lock file is not up to date.
    timings.step("clippy", || {
        run::run(&mut run::cargo(&[
            "clippy",
            "--locked",
            "--workspace",
            "--all-targets",
            "--all-features",
            "--quiet",
            "--",
            "--deny=warnings",
        ]))
    })?;
    // Each half of the services alone, as the agent and programs on a host build it.
    timings.step("features", || {
        ["guest", "host"].iter().try_for_each(|half| {
            run::run(&mut run::cargo(&[
                "clippy",
                "--package",
                "hvsock-services",
                "--no-default-features",
                "--features",
                half,
                "--quiet",
                "--",
                "--deny=warnings",
            ]))
        })
    })?;
    timings.step("documentation", || {
        run::run(
            run::cargo(&[
                "doc",
                "--workspace",
                "--all-features",
                "--no-deps",
                "--quiet",
            ])
            .env("RUSTDOCFLAGS", "-Dwarnings"),
        )
    })?;
    let mut programs = test::prepare(&mut timings)?;
    test::doc_tests(&mut timings)?;
    timings.step("loom", || loom::run(&[]))?;
    timings.step("the kernel's vsock_test", || {
        vsock_test::run(&[])?;
        vsock_test::run(&["--guests".to_owned(), "uml,qemu".to_owned()])?;
        vsock_test::run(&["--run".to_owned()])
    })?;
    programs.extend(windows::check(&mut timings)?);
    timings.print();
    test::last(&programs, &[])
}
