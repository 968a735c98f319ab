//! The tasks by name, and their help.

use anyhow::{Result, bail};

use crate::{
    bench, capi, ci, deny, fuzz, kernel_link, loom, openapi, python, statically, test, vsock_test,
    windows,
};

/// One task.
struct Task {
    name: &'static str,
    /// Its arguments, as in a usage line. Empty: it takes none.
    arguments: &'static str,
    /// What it does.
    about: &'static str,
    /// Its own options and arguments, each with what it does.
    options: &'static [(&'static str, &'static str)],
    rest: Rest,
    run: fn(&[String]) -> Result<()>,
}

/// Whose the arguments are that are none of the task's own options.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// The task's, so that `--help` is, too, wherever it is.
    Own,
    /// Another program's: only a `--help` in front of all is the task's.
    Program,
}

const TASKS: &[Task] = &[
    Task {
        name: "test",
        arguments: "[ARGS…]",
        about: "Install test tools, then run doc tests, loom, Windows tests under Wine and all other tests",
        options: &[(
            "ARGS",
            "run only the test runner, with these arguments: cargo-nextest if it is installed, otherwise \
             `cargo test`; as `-p hvsock-ring` or a part of a test's name",
        )],
        rest: Rest::Program,
        run: test::run,
    },
    Task {
        name: "ci",
        arguments: "",
        about: "Run the gate: format, clippy and documentation with warnings denied, then all tests",
        options: &[],
        rest: Rest::Own,
        run: ci::run,
    },
    Task {
        name: "loom",
        arguments: "[NAMES…]",
        about: "Check the ring's protocol under every interleaving of two threads",
        options: &[(
            "NAMES",
            "only the models with one of these texts in their names",
        )],
        rest: Rest::Program,
        run: loom::run,
    },
    Task {
        name: "fuzz",
        arguments: "[OPTIONS] [TARGET…]",
        about: "Run the fuzz targets with LLVM's fuzzer and AddressSanitizer, then print a table",
        options: &[
            (
                "TARGET",
                "only these targets; `cargo run -p hvsock-fuzz -- list` says what each is",
            ),
            (
                "--minutes N",
                "how long each target runs, in minutes [default: 1]",
            ),
            ("--seconds N", "the same in seconds"),
            ("--json", "print the table as JSON"),
            (
                "--seed",
                "run nothing: write the seeds of all targets to fuzz/corpus",
            ),
            (
                "--minimize",
                "run nothing: put the fewest inputs that reach what all known inputs reach into \
                 fuzz/corpus",
            ),
        ],
        rest: Rest::Own,
        run: fuzz::run,
    },
    Task {
        name: "bench",
        arguments: "[NAME [ARGS…]]",
        about: "Run one bench, built with the profile dist, or list all",
        options: &[
            (
                "NAME",
                "the bench; without it all are listed with what they measure",
            ),
            ("ARGS", "arguments of the bench"),
        ],
        rest: Rest::Program,
        run: bench::run,
    },
    Task {
        name: "deny",
        arguments: "[ARGS…]",
        about: "Check licences, duplicates, advisories and sources of all dependencies with cargo-deny",
        options: &[(
            "ARGS",
            "arguments of cargo-deny, as `check licenses bans` for some of the checks",
        )],
        rest: Rest::Program,
        run: deny::run,
    },
    Task {
        name: "agent",
        arguments: "",
        about: "Build hvsock-agent for guests, static and optimised for size; print its path",
        options: &[],
        rest: Rest::Own,
        run: statically::agent,
    },
    Task {
        name: "capi",
        arguments: "[OPTIONS]",
        about: "Build the C library: libhvsock.so.1, libhvsock.a, hvsock.pc and the headers; print the folder of \
                the libraries",
        options: capi::OPTIONS,
        rest: Rest::Own,
        run: capi::run,
    },
    Task {
        name: "vsock-test",
        arguments: "[OPTIONS]",
        about: "Run the Linux kernel's own vsock tests between two real guests, in both directions",
        options: &[
            (
                "--source FOLDER",
                "a kernel tree to build the tests from [default: Debian's linux-source-6.12]",
            ),
            (
                "--guests VMM,VMM",
                "what the two guests run under: qemu or uml; `uml` alone is one guest that is both ends \
                                  [default: qemu,qemu]",
            ),
            (
                "--run",
                "run one half on this machine under `hvsock run`, the other in a guest",
            ),
            (
                "--backend PROGRAM",
                "another device, with the command line of vhost-device-vsock",
            ),
            (
                "--all",
                "also the tests that the guests' kernels cannot pass",
            ),
            (
                "--skip N",
                "leave out the test with this number; may be repeated",
            ),
            ("--json", "print the results as JSON"),
        ],
        rest: Rest::Own,
        run: vsock_test::run,
    },
    Task {
        name: "kernel-link",
        arguments: "[OPTIONS]",
        about: "Try the kernel's vhost-vsock in a machine that plays the host, and print what holds",
        options: &[
            (
                "--kernel VERSION|IMAGE",
                "a kernel of Debian (6.1, 6.12 or 7.3), or the path of an image; may be repeated \
                                        [default: the one of the other tests]",
            ),
            ("--all", "every kernel of Debian"),
            (
                "--only TEXT",
                "only the scenarios with this text in their names",
            ),
            ("--measure", "measure, too"),
            ("--json", "print the results as JSON"),
        ],
        rest: Rest::Own,
        run: kernel_link::run,
    },
    Task {
        name: "windows",
        arguments: "[COMMAND ARGS…]",
        about: "Build the Windows crates and run their tests under Wine",
        options: &[(
            "COMMAND ARGS",
            "run this cargo command for Windows instead, as `cargo xtask windows test -p hvsock-sys`",
        )],
        rest: Rest::Program,
        run: windows::run,
    },
    Task {
        name: "wine",
        arguments: "[OPTIONS] PROGRAM [ARGS…]",
        about: "Run a Windows program under Wine as the tests do, and end with its exit status",
        options: &[
            ("--shim", "give it AF_HYPERV over TCP"),
            ("--limit SECONDS", "kill it after this time"),
            ("PROGRAM ARGS", "the program, and its arguments"),
        ],
        rest: Rest::Program,
        run: windows::wine,
    },
    Task {
        name: "python",
        arguments: "[ARGS…]",
        about: "Build the accelerator of the Python package, then run the package's tests with and without it",
        options: &[(
            "ARGS",
            "arguments of the test program, as a part of a test's name",
        )],
        rest: Rest::Program,
        run: python::run,
    },
    Task {
        name: "openapi",
        arguments: "",
        about: "Write docs/openapi.json, after a change to the control API",
        options: &[],
        rest: Rest::Own,
        run: openapi::run,
    },
];

/// Runs the task that the first argument names, or prints help.
pub fn dispatch(arguments: &[String]) -> Result<()> {
    match arguments.split_first() {
        None => print!("{}", list()),
        Some((word, rest)) if is_help(word) || word == "help" => match rest {
            [] => print!("{}", list()),
            [name, ..] => print!("{}", find(name)?.help()),
        },
        Some((name, rest)) => {
            let task = find(name)?;
            if task.is_asked_for_help(rest) {
                print!("{}", task.help());
            } else if task.arguments.is_empty() && !rest.is_empty() {
                bail!(
                    "`{name}` takes no arguments, but was given {rest:?}\nhelp: cargo xtask {name}"
                );
            } else {
                return (task.run)(rest);
            }
        }
    }
    Ok(())
}

fn is_help(word: &str) -> bool {
    matches!(word, "--help" | "-h")
}

fn find(name: &str) -> Result<&'static Task> {
    match TASKS.iter().find(|task| task.name == name) {
        Some(task) => Ok(task),
        None => bail!("no task {name:?}\nhelp: cargo xtask --help"),
    }
}

impl Task {
    fn is_asked_for_help(&self, arguments: &[String]) -> bool {
        match self.rest {
            Rest::Own => arguments.iter().any(|word| is_help(word)),
            Rest::Program => arguments.first().is_some_and(|word| is_help(word)),
        }
    }

    fn usage(&self) -> String {
        let usage = format!("cargo xtask {} {}", self.name, self.arguments);
        usage.trim_end().to_owned()
    }

    /// The help of this task alone.
    fn help(&self) -> String {
        let mut text = String::new();
        for line in wrapped(self.about, 100) {
            text.push_str(&line);
            text.push('\n');
        }
        text.push_str(&format!("\nUsage: {}\n", self.usage()));
        if !self.options.is_empty() {
            text.push('\n');
        }
        for (name, about) in self.options {
            text.push_str(&format!("  {name}\n"));
            for line in wrapped(about, 90) {
                text.push_str(&format!("          {line}\n"));
            }
        }
        text
    }
}

/// All tasks.
fn list() -> String {
    let mut text =
        String::from("Usage: cargo xtask TASK [ARGS…]\n       cargo xtask TASK --help\n");
    for task in TASKS {
        let call = format!("{} {}", task.name, task.arguments);
        text.push_str(&format!("\n  {}\n", call.trim_end()));
        for line in wrapped(task.about, 90) {
            text.push_str(&format!("      {line}\n"));
        }
    }
    text
}

/// The text in lines of at most `width` bytes, broken at spaces.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn help_of_a_task_is_printed_and_the_task_does_not_run() {
        for task in TASKS {
            for help in ["--help", "-h"] {
                assert!(task.is_asked_for_help(&words(help)), "{}", task.name);
                dispatch(&words(&format!("{} {help}", task.name))).expect("help");
                dispatch(&words(&format!("help {}", task.name))).expect("help");
            }
            let help = task.help();
            let usage = format!("Usage: cargo xtask {}", task.name);
            assert!(help.contains(&usage), "{help}");
            assert!(task.options.iter().all(|(name, _)| help.contains(name)));
        }
    }

    #[test]
    fn help_behind_another_programs_arguments_is_that_programs() {
        let asked =
            |task: &str, rest: &str| find(task).expect("a task").is_asked_for_help(&words(rest));
        assert!(asked("capi", "--prefix /usr --help"));
        assert!(asked("vsock-test", "--json -h"));
        assert!(!asked("bench", "stream --help"));
        assert!(!asked("windows", "test --help"));
        assert!(!asked("wine", "hvsock.exe --help"));
    }

    #[test]
    fn a_task_without_arguments_refuses_some() {
        for name in ["ci", "agent", "openapi"] {
            let error = dispatch(&words(&format!("{name} --json"))).expect_err("no argument");
            assert!(error.to_string().contains("takes no arguments"), "{error}");
        }
        let error = dispatch(&words("capy")).expect_err("no such task");
        assert_eq!(
            error.to_string(),
            "no task \"capy\"\nhelp: cargo xtask --help"
        );
    }

    /// The task's own source has the words that its help names.
    #[test]
    fn every_option_of_a_help_is_one_that_the_task_knows() {
        let sources = [
            ("capi", include_str!("capi.rs")),
            ("fuzz", include_str!("fuzz/mod.rs")),
            ("kernel-link", include_str!("kernel_link.rs")),
            ("wine", include_str!("windows/wine.rs")),
            (
                "vsock-test",
                concat!(
                    include_str!("vsock_test.rs"),
                    include_str!("../../crates/guests/examples/vsock_test/main.rs")
                ),
            ),
        ];
        for task in TASKS {
            let options = task.options.iter().map(|(name, _)| *name);
            for option in options.filter(|name| name.starts_with("--")) {
                let word = option.split(' ').next().unwrap_or_default();
                let source = sources.iter().find(|(name, _)| *name == task.name);
                let (_, source) = source.expect("a task with options has its source here");
                assert!(source.contains(&format!("\"{word}\"")), "{word}");
            }
        }
        for (name, source) in sources {
            let help = find(name).expect("a task").help();
            let matched = source.split('"').filter(|text| {
                text.starts_with("--") && source.contains(&format!("\"{text}\" =>"))
            });
            for word in matched {
                assert!(help.contains(&format!("  {word}")), "{name} has {word}");
            }
        }
    }
}
