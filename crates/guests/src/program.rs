//! Shared libraries of host programs that run in a guest.
//!
//! The program's own ELF interpreter lists them (`ld.so --list`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tools;

/// The ELF interpreter of a program; `None` if it is static.
pub fn interpreter(program: &Path) -> io::Result<Option<PathBuf>> {
    Ok(interpreter_in(&fs::read(program)?))
}

/// Reads the program headers of a 64-bit little-endian ELF file for `PT_INTERP`.
fn interpreter_in(elf: &[u8]) -> Option<PathBuf> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, size: usize| {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0_u64, |all, byte| all << 8 | u64::from(*byte)),
        )
    };
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = usize::try_from(number(0x20, 8)?).ok()?;
    let size = usize::try_from(number(0x36, 2)?).ok()?;
    let count = usize::try_from(number(0x38, 2)?).ok()?;
    for index in 0..count {
        let header = table.checked_add(index.checked_mul(size)?)?;
        if number(header, 4)? == PT_INTERP {
            let offset = usize::try_from(number(header.checked_add(8)?, 8)?).ok()?;
            let length = usize::try_from(number(header.checked_add(32)?, 8)?).ok()?;
            let name = elf.get(offset..offset.checked_add(length)?)?;
            let name = std::str::from_utf8(name).ok()?.trim_end_matches('\0');
            return Some(PathBuf::from(name));
        }
    }
    None
}

/// The paths of a program's interpreter and shared libraries, the same on host and guest. Empty for a
/// static program.
pub fn libraries(program: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(interpreter) = interpreter(program)? else {
        return Ok(Vec::new());
    };
    let mut list = Command::new(&interpreter);
    let printed = tools::output(list.arg("--list").arg(program))?;
    let mut found = vec![interpreter];
    found.extend(listed(&String::from_utf8_lossy(&printed))?);
    Ok(found)
}

/// Parses lines such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`. Entries without a file
/// (`linux-vdso.so.1`) and the interpreter have no arrow.
fn listed(printed: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in printed.lines() {
        let Some((name, rest)) = line.split_once(" => ") else {
            continue;
        };
        let path = rest.split(" (0x").next().unwrap_or(rest).trim();
        if path.starts_with('/') {
            found.push(PathBuf::from(path));
        } else {
            return Err(io::Error::other(format!("{}: {path}", name.trim())));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interpreter_and_libraries_of_this_test_exist() {
        let this = std::env::current_exe().expect("this program");
        let Some(interpreter) = interpreter(&this).expect("readable") else {
            return;
        };
        assert!(interpreter.is_absolute());
        let libraries = libraries(&this).expect("listed");
        assert!(
            libraries
                .iter()
                .any(|path| path.to_string_lossy().contains("libc.so"))
        );
        assert!(libraries.iter().all(|path| path.exists()), "{libraries:?}");
    }

    #[test]
    fn a_missing_library_is_an_error() {
        let printed = "\tlinux-vdso.so.1 (0x1)\n\tlibx.so => not found\n";
        let why = listed(printed).expect_err("not there").to_string();
        assert_eq!(why, "libx.so: not found");
    }

    #[test]
    fn an_invalid_program_has_no_interpreter() {
        for bytes in [&b""[..], b"#!/bin/sh", b"\x7fELF\x02\x01", &[0xff; 64]] {
            assert_eq!(interpreter_in(bytes), None);
        }
        let mut absurd = vec![0xff; 64];
        absurd[..6].copy_from_slice(b"\x7fELF\x02\x01");
        assert_eq!(interpreter_in(&absurd), None);
    }
}
