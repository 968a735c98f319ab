//! What odd calls answer, compared with the kernel's `AF_VSOCK`.
//!
//! `calls.c` makes the calls and prints the answers. `kernel.txt` has what it prints in a guest with a kernel of
//! Linux 6.1, natively. [`DIFFERENT`] has all that is different under `hvsock run`, with the reason.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hvsock_guests::{Config, File, Guest, Kit, Vmm};
use hvsock_testkit::require;

use super::util::{Completed, World};

/// The answers of the kernel.
const KERNEL: &str = include_str!("kernel.txt");

/// The module for connections within a guest, which has loaded those that this one needs.
const LOOPBACK: &str = "vsock_loopback";

/// A call with another answer than the kernel's.
struct Different {
    name: &'static str,
    seccomp: &'static str,
    preload: &'static str,
}

const fn both(name: &'static str, answer: &'static str) -> Different {
    Different {
        name,
        seccomp: answer,
        preload: answer,
    }
}

const fn preload(name: &'static str, answer: &'static str) -> Different {
    Different {
        name,
        seccomp: "",
        preload: answer,
    }
}

const fn seccomp(name: &'static str, answer: &'static str) -> Different {
    Different {
        name,
        seccomp: answer,
        preload: "",
    }
}

/// All calls with another answer than the kernel's. The empty answer is the kernel's.
const DIFFERENT: &[Different] = &[
    // The broker has streams only, and says so when the socket is made.
    both("socket of SOCK_DGRAM", "ESOCKTNOSUPPORT"),
    both("socket of SOCK_SEQPACKET", "ESOCKTNOSUPPORT"),
    // Calls for data and for options of other families reach the Unix socket itself.
    seccomp("setting TCP_NODELAY", "EOPNOTSUPP"),
    seccomp("TCP_NODELAY", "EOPNOTSUPP"),
    both("recv, new", "EINVAL"),
    both("read, new", "EINVAL"),
    both("recv of MSG_OOB, new", "EINVAL"),
    both("recv of MSG_OOB", "EINVAL"),
    both("address of recvfrom", "family 1, length 22"),
    // Linux 6.17 has them for AF_VSOCK, too.
    both("FIONREAD, new", "0"),
    both("SIOCOUTQ, new", "0"),
    both("FIONREAD", "0"),
    // The listener is the connection to the broker.
    preload("send of a listener", "1"),
    preload("poll of a listener", "1"),
    preload("its events", "5"),
    // The kernel leaves the context id open that a client's connection has, and gives that of the call to an accepted one.
    both(
        "name of an accepted socket",
        "family 40, length 16, own 27004",
    ),
    both(
        "name of a bound socket that connected",
        "family 40, length 16, own 27012",
    ),
    // Reported by the call itself, and not again. The kernel keeps it for the next connect, which fails.
    both("SO_ERROR after a connect to nobody", "0, length 4"),
    both("connect to a listener after that", "0"),
    // Still connected, for reading.
    both(
        "peer after the shutdown",
        "family 40, length 16, local 27009",
    ),
    both("connect after the shutdown", "EISCONN"),
];

/// The program, in a folder of its own.
fn compiled(folder: &Path) -> Option<PathBuf> {
    let compiler = require::program("cc", &["--version"])?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/run/calls/calls.c");
    let program = folder.join("calls");
    let mut compile = Command::new(compiler);
    compile.args(["-Wall", "-Wextra", "-Werror", "-O1", "-o"]);
    Completed::of(compile.arg(&program).arg(source)).ok();
    Some(program)
}

/// The lines that are not as the kernel has them, or as [`DIFFERENT`] says.
fn wrong(answers: &str, column: fn(&Different) -> &'static str) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut names = BTreeSet::new();
    let mut expected = KERNEL.lines();
    for line in answers.lines() {
        let kernel = expected.next().unwrap_or_default();
        let name = kernel.split(": ").next().unwrap_or_default();
        assert!(names.insert(name), "{name} is there twice");
        let different = DIFFERENT.iter().find(|different| different.name == name);
        let right = match different.map(column) {
            Some("") | None => kernel.to_owned(),
            Some(answer) => format!("{name}: {answer}"),
        };
        if line != right {
            wrong.push(format!("{line}\n    not {right}"));
        }
    }
    for different in DIFFERENT {
        assert!(
            names.contains(different.name),
            "no call is {}",
            different.name
        );
    }
    wrong.extend(expected.map(|line| format!("nothing\n    not {line}")));
    wrong
}

fn check(way: &str, column: fn(&Different) -> &'static str) {
    let world = World::without_host();
    let folder = hvsock_testkit::TempFolder::new();
    let Some(program) = compiled(folder.path()) else {
        return;
    };
    let mut command = world.command(["-q", "run", way]);
    let answers = Completed::of(command.arg(program)).ok();
    let wrong = wrong(&answers, column);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn odd_calls_by_seccomp_answer_as_those_of_the_kernel() {
    check("--seccomp", |different| different.seccomp);
}

#[test]
fn odd_calls_by_the_preloaded_library_answer_as_those_of_the_kernel() {
    let Some(_) = require::example("hvsock-cli", "libhvsock_preload.so") else {
        return;
    };
    check("--preload", |different| different.preload);
}

#[test]
fn the_recorded_answers_are_those_of_the_kernel_of_a_guest() {
    let Some(kit) = require::found(Kit::find_for(Vmm::Uml)) else {
        return;
    };
    let folder = hvsock_testkit::TempFolder::new();
    let Some(program) = compiled(folder.path()) else {
        return;
    };
    let mut config = Config::new("calls");
    config.files = File::program(&program, "/bin/calls").unwrap();
    let module = kit.module(LOOPBACK).unwrap();
    config
        .files
        .push(File::bytes("/loopback.ko", 0o644, module));
    let guest = Guest::boot(&kit, &config).unwrap();
    let command = "insmod /loopback.ko && exec calls";
    let output = guest.run(command, Duration::from_secs(60)).unwrap();
    assert!(output.success(), "{output:?}");
    assert_eq!(output.text().trim_end(), KERNEL.trim_end());
}
