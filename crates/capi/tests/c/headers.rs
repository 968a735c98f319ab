//! The headers and the symbols.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use hvsock_testkit::require;
use hvsock_testkit::wine::Wine;

use crate::build::{Compiler, LIBRARY, compilers, examples, root, run, sources};

/// The headers of this project, and headers of the system that declare the same functions or types.
const OURS: [&str; 5] = [
    "winsock2.h",
    "hvsocket.h",
    "ws2tcpip.h",
    "initguid.h",
    "hvsock.h",
];
const THEIRS: [&str; 5] = [
    "sys/socket.h",
    "poll.h",
    "netdb.h",
    "sys/select.h",
    "unistd.h",
];

fn compiles(compiler: &Compiler, flags: &[&str], text: &str) {
    let source = LIBRARY
        .folder()
        .join(format!("{}-{}", compiler.name, fnv(text)));
    fs::write(&source, text).expect("a source");
    run(LIBRARY
        .compiler(compiler)
        .args(flags)
        .args(["-fsyntax-only", "-x", compiler.language])
        .arg(&source));
}

fn fnv(text: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

fn included(headers: &[&str]) -> String {
    let lines: Vec<_> = headers
        .iter()
        .map(|header| format!("#include <{header}>\n"))
        .collect();
    lines.concat() + "int f(void);\n"
}

#[test]
fn every_header_compiles_alone_twice_and_in_any_order() {
    for compiler in compilers() {
        for header in OURS {
            compiles(&compiler, &[], &included(&[header]));
            compiles(&compiler, &[], &included(&[header, header]));
            compiles(
                &compiler,
                &[],
                &included(&THEIRS.iter().chain([&header]).copied().collect::<Vec<_>>()),
            );
            compiles(
                &compiler,
                &[],
                &included(&[&[header], THEIRS.as_slice()].concat()),
            );
            let others = OURS.iter().filter(|it| **it != header).copied();
            compiles(
                &compiler,
                &[],
                &included(&[header].into_iter().chain(others).collect::<Vec<_>>()),
            );
        }
    }
}

#[test]
fn a_program_uses_the_names_of_windows_with_its_own_members_of_the_same_names() {
    for compiler in compilers() {
        let text = fs::read_to_string(sources().join("names.c")).expect("a source");
        for flags in [["-O0"].as_slice(), &["-O2", "-D_FORTIFY_SOURCE=2"]] {
            for first in ["", "sys/socket.h", "netdb.h"] {
                let first = if first.is_empty() {
                    String::new()
                } else {
                    format!("#include <{first}>\n")
                };
                compiles(&compiler, flags, &(first + &text));
            }
        }
    }
}

#[test]
fn types_of_windows_from_elsewhere_can_be_kept() {
    let text = "#define HVSOCK_NO_WINDOWS_TYPES\n#include <stdint.h>\n\
                typedef char CHAR; typedef unsigned char BYTE; typedef uint16_t USHORT, WORD; typedef int INT, BOOL, LONG;\n\
                typedef uint32_t ULONG, DWORD, UINT; typedef DWORD *LPDWORD;\n\
                #include <winsock2.h>\n#include <hvsocket.h>\n\
                typedef char is_36_bytes[sizeof(SOCKADDR_HV) == 36 ? 1 : -1];\n";
    for compiler in compilers() {
        compiles(&compiler, &[], text);
    }
}

#[test]
fn only_versioned_names_of_the_library_are_exported() {
    let library = LIBRARY.folder().join("libhvsock.so.1");
    let output = run(Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(&library));
    let text = String::from_utf8(output.stdout).expect("text");
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.rsplit(' ').next())
        .collect();
    let exported: BTreeSet<&str> = names
        .iter()
        .filter(|name| **name != "HVSOCK_1")
        .map(|name| {
            let plain = name.strip_suffix("@@HVSOCK_1");
            plain.unwrap_or_else(|| panic!("{name} has no version"))
        })
        .collect();
    let winsock = fs::read_to_string(root().join("include/winsock2.h")).expect("a header");
    let native = fs::read_to_string(LIBRARY.folder().join("hvsock.h")).expect("a header");
    let mut documented: BTreeSet<String> = winsock
        .lines()
        .filter_map(|line| {
            line.strip_prefix("HVSOCK_CALL")
                .and_then(|rest| rest.split_once('('))
        })
        .filter_map(|(_, rest)| rest.split(", ").nth(1))
        .map(|name| format!("hvsock_ws_{name}"))
        .collect();
    documented.insert("hvsock_ws_ioctl_sized".into());
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for (at, _) in native.match_indices("hvsock_") {
        let name: String = native[at..].chars().take_while(|c| is_part(*c)).collect();
        if native[at + name.len()..].starts_with('(') {
            documented.insert(name);
        }
    }
    let documented: BTreeSet<&str> = documented.iter().map(String::as_str).collect();
    assert_eq!(exported, documented);
}

#[test]
fn the_same_programs_run_on_windows_and_say_where_there_are_no_hyperv_sockets() {
    let compiler = "x86_64-w64-mingw32-gcc";
    let Some(compiler) = require::program(compiler, &["--version"]) else {
        return;
    };
    let Some(wine) = Wine::new() else { return };
    for program in ["server", "client"] {
        let to = wine.folder().join(format!("{program}.exe"));
        run(Command::new(&compiler)
            .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"])
            .arg(root().join("include"))
            .arg(examples().join(program).with_extension("c"))
            .args(["-lws2_32", "-o"])
            .arg(&to));
        // Wine has no AF_HYPERV: WSAEAFNOSUPPORT. The target `shim` of the examples has it.
        let output = wine.run(&format!("{program}.exe"), &[]).expect("an end");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let errors = String::from_utf8_lossy(&output.stderr);
        let wanted = format!("{program}: socket failed: 10047");
        assert!(errors.lines().any(|line| line == wanted), "{errors}");
    }
}
