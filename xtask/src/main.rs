//! Tasks of the repository that plain cargo cannot do, run as `cargo xtask NAME`.
//!
//! Plain `cargo build`, `cargo test --workspace` and `cargo run` work without it. It adds QEMU, Wine,
//! loom, root's tools, and the checks before a merge. `.ci/run` calls the same commands as a developer.

#![forbid(unsafe_code)]

mod bench;
mod capi;
mod ci;
mod deny;
mod kernel_link;
mod loom;
mod openapi;
mod python;
mod run;
mod statically;
mod test;
mod tools;
mod vsock_test;
mod windows;

use std::process::ExitCode;

use anyhow::{Result, bail};

/// One task: its name, its arguments, its help line and its function.
struct Task {
    name: &'static str,
    arguments: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const TASKS: &[Task] = &[
    Task {
        name: "test",
        arguments: "[ARGS…]",
        about: "install test tools, then run doc tests, loom, Windows tests under Wine and all other \
                tests; with ARGS, run only the test runner with ARGS",
        run: test::run,
    },
    Task {
        name: "ci",
        arguments: "",
        about: "run the gate: format, clippy and documentation with warnings denied, then all tests",
        run: ci::run,
    },
    Task {
        name: "loom",
        arguments: "[NAMES…]",
        about: "check the ring's protocol under every interleaving of two threads",
        run: loom::run,
    },
    Task {
        name: "bench",
        arguments: "[NAME [ARGS…]]",
        about: "run one bench, built with the profile dist, or list all",
        run: bench::run,
    },
    Task {
        name: "deny",
        arguments: "[ARGS…]",
        about: "check licences, duplicates, advisories and sources of all dependencies; ARGS select \
                checks, as `check licenses bans`",
        run: deny::run,
    },
    Task {
        name: "agent",
        arguments: "",
        about: "build hvsock-agent for guests, static and optimised for size; print its path",
        run: statically::agent,
    },
    Task {
        name: "capi",
        arguments: "[OPTIONS]",
        about: "build the C library: libhvsock.so.1, libhvsock.a, hvsock.pc and headers below \
                --prefix FOLDER (target/capi), with --destdir FOLDER in front, --libdir lib64, \
                --profile NAME",
        run: capi::run,
    },
    Task {
        name: "vsock-test",
        arguments: "[ARGS…]",
        about: "run the Linux kernel's own vsock tests between two real guests, in both directions; \
                --guests uml,qemu, --run, --all, --source FOLDER, --json, --backend PROGRAM, --skip N",
        run: vsock_test::run,
    },
    Task {
        name: "kernel-link",
        arguments: "[ARGS…]",
        about: "try the kernel's vhost-vsock in a machine that plays the host, and print what holds; \
                --kernel 6.1, 6.12, 7.3 or IMAGE, --all, --only TEXT, --measure, --json",
        run: kernel_link::run,
    },
    Task {
        name: "windows",
        arguments: "[COMMAND ARGS…]",
        about: "build the Windows crates and run their tests under Wine; with arguments, run cargo \
                for Windows, as `cargo xtask windows test -p hvsock-sys`",
        run: windows::run,
    },
    Task {
        name: "wine",
        arguments: "PROGRAM [ARGS…]",
        about: "run a Windows program under Wine as the tests do; --shim gives it AF_HYPERV \
                over TCP, --limit SECONDS kills it",
        run: windows::wine,
    },
    Task {
        name: "python",
        arguments: "[ARGS…]",
        about: "build the accelerator of the Python package, then run the package's tests with and \
                without it",
        run: python::run,
    },
    Task {
        name: "openapi",
        arguments: "",
        about: "write docs/openapi.json, after a change to the control API",
        run: openapi::run,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (name, rest) = match arguments.split_first() {
        Some((name, rest)) => (name.as_str(), rest),
        None => ("help", &[][..]),
    };
    if matches!(name, "help" | "--help" | "-h") {
        print!("{}", usage());
        return ExitCode::SUCCESS;
    }
    match dispatch(name, rest) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(name: &str, rest: &[String]) -> Result<()> {
    match TASKS.iter().find(|task| task.name == name) {
        Some(task) => (task.run)(rest),
        None => bail!("no task {name:?}\n{}", usage()),
    }
}

fn usage() -> String {
    let mut text = String::from("usage: cargo xtask NAME\n");
    for task in TASKS {
        let call = format!("{} {}", task.name, task.arguments);
        text.push_str(&format!("\n  {}\n", call.trim_end()));
        for line in wrapped(task.about, 72) {
            text.push_str(&format!("      {line}\n"));
        }
    }
    text
}

/// The text in lines of at most `width` bytes, broken at spaces.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines
            .last_mut()
            .filter(|line| line.len() + word.len() < width);
        match last {
            Some(line) if !line.is_empty() => line.extend([" ", word]),
            Some(line) => line.push_str(word),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}
