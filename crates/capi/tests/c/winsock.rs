//! The calls of Windows Sockets, in a program in C with both ends in one process.

use std::process::Command;

use hvsock_testkit::require;

use crate::build::{Compiler, GCC, GXX, LIBRARY, run, sources};
use crate::programs::World;

fn passes(compiler: &Compiler, flags: &[&str], runner: &[&str]) {
    let Some(_) = require::program(compiler.program, &["--version"]) else {
        return;
    };
    let program = LIBRARY.program(compiler, &sources().join("winsock.c"), flags);
    let world = World::new();
    let mut command = match runner {
        [] => Command::new(&program),
        [name, arguments @ ..] => {
            let mut command = Command::new(name);
            command.args(arguments).arg(&program);
            command
        }
    };
    // What a call returns for memory that is not there, the tools report as a fault.
    if !runner.is_empty() || flags.iter().any(|flag| flag.starts_with("-fsanitize")) {
        command.arg("arguments");
    }
    run(command.env("HVSOCK_ENDPOINT", world.host()));
}

#[test]
fn the_calls_do_in_c_what_they_do_on_windows() {
    passes(&GCC, &["-D_GNU_SOURCE"], &[]);
}

#[test]
fn the_calls_do_in_cpp_what_they_do_on_windows() {
    passes(&GXX, &["-O2", "-D_FORTIFY_SOURCE=2"], &[]);
}

#[test]
fn sanitizers_find_nothing_in_the_calls() {
    passes(
        &GCC,
        &[
            "-D_GNU_SOURCE",
            "-g",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
        ],
        &[],
    );
}

#[test]
fn valgrind_finds_no_invalid_access_and_no_lost_memory_in_the_calls() {
    let Some(_) = require::program("valgrind", &["--version"]) else {
        return;
    };
    let arguments = [
        "valgrind",
        "--quiet",
        "--error-exitcode=9",
        "--leak-check=full",
        "--errors-for-leak-kinds=definite",
    ];
    passes(&GCC, &["-D_GNU_SOURCE", "-g"], &arguments);
}
