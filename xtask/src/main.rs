//! The project's chores, run as `cargo xtask NAME`: one place that knows how the tests are
//! prepared, what the gate before a merge is, and which benches there are. `.ci/run` calls the
//! same commands as a developer does, so nothing passes in one place and fails in the other for
//! want of a step.

#![forbid(unsafe_code)]

mod bench;
mod ci;
mod deny;
mod loom;
mod openapi;
mod run;
mod statically;
mod test;
mod tools;
mod vsock_test;
mod windows;

use std::process::ExitCode;

use anyhow::{Result, bail};

/// One chore: its name, what follows the name, what it does, and the function that does it.
struct Chore {
    name: &'static str,
    arguments: &'static str,
    about: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const CHORES: &[Chore] = &[
    Chore {
        name: "test",
        arguments: "[ARGS…]",
        about: "install what the tests need, then run doc tests, loom, what is for Windows and all \
                other tests; ARGS go to the runner of these last ones and leave the rest out",
        run: test::run,
    },
    Chore {
        name: "ci",
        arguments: "",
        about: "the gate: format, clippy and documentation with warnings denied, then the tests",
        run: ci::run,
    },
    Chore {
        name: "loom",
        arguments: "[NAMES…]",
        about: "try the ring's protocol under every interleaving of two threads",
        run: loom::run,
    },
    Chore {
        name: "bench",
        arguments: "[NAME [ARGS…]]",
        about: "run one bench with optimisation, or list them",
        run: bench::run,
    },
    Chore {
        name: "deny",
        arguments: "[ARGS…]",
        about: "check licences, duplicates, advisories and sources of all dependencies; ARGS, as \
                `check licenses bans`, choose some",
        run: deny::run,
    },
    Chore {
        name: "agent",
        arguments: "",
        about: "build hvsock-agent for guests: static, optimised for size; prints where it is",
        run: statically::agent,
    },
    Chore {
        name: "vsock-test",
        arguments: "[ARGS…]",
        about: "run the Linux kernel's own tests of vsock between two real guests, both ways; \
                --source FOLDER takes them from another tree, --json, --backend PROGRAM, --skip N",
        run: vsock_test::run,
    },
    Chore {
        name: "windows",
        arguments: "[COMMAND ARGS…]",
        about: "build what is for Windows and run its tests under Wine; with arguments, cargo for \
                Windows: `cargo xtask windows test -p hvsock-sys`",
        run: windows::run,
    },
    Chore {
        name: "wine",
        arguments: "PROGRAM [ARGS…]",
        about: "run a Windows program under Wine as the tests are; --stand-in gives it AF_HYPERV \
                over TCP, --limit SECONDS ends it",
        run: windows::wine,
    },
    Chore {
        name: "openapi",
        arguments: "",
        about: "write docs/openapi.json anew, after a change to the control API",
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
    match CHORES.iter().find(|chore| chore.name == name) {
        Some(chore) => (chore.run)(rest),
        None => bail!("there is no chore {name:?}\n{}", usage()),
    }
}

fn usage() -> String {
    let mut text = String::from("usage: cargo xtask NAME\n");
    for chore in CHORES {
        let call = format!("{} {}", chore.name, chore.arguments);
        text.push_str(&format!("  {call:<24} {}\n", chore.about));
    }
    text
}
