//! The functions of `hvsock.h`.

use std::process::Command;

use hvsock_testkit::require;

use crate::build::{Compiler, GCC, GXX, LIBRARY, run, sources};
use crate::programs::World;

fn passes(compiler: &Compiler, flags: &[&str]) {
    let Some(_) = require::program(compiler.program, &["--version"]) else {
        return;
    };
    let program = LIBRARY.program(compiler, &sources().join("native.c"), flags);
    let world = World::new();
    run(Command::new(&program).env("HVSOCK_ENDPOINT", world.host()));
}

#[test]
fn the_functions_of_the_library_do_in_c_what_they_do_in_rust() {
    passes(&GCC, &["-D_GNU_SOURCE"]);
}

#[test]
fn sanitizers_find_nothing_in_the_functions_of_the_library() {
    passes(
        &GXX,
        &[
            "-g",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
        ],
    );
}
