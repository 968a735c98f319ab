//! Programs of the host that are to run in a guest: with the shared libraries that they need.
//!
//! Those are asked of the program's own interpreter (`ld.so --list`), which is what would load them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tools;

/// The ELF interpreter of a program; none if it is static.
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

/// Everything that a program loads at its start, its interpreter among it, as paths of the host that
/// are the guest's too. None for a static program.
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

/// Lines as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, and without the arrow for what has no
/// file (`linux-vdso.so.1`) or is the interpreter.
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
    fn this_test_has_an_interpreter_and_libraries_that_exist() {
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
    fn a_library_that_is_not_there_is_an_error() {
        let printed = "\tlinux-vdso.so.1 (0x1)\n\tlibx.so => not found\n";
        let why = listed(printed).expect_err("not there").to_string();
        assert_eq!(why, "libx.so: not found");
    }

    #[test]
    fn what_is_no_program_has_no_interpreter() {
        for bytes in [&b""[..], b"#!/bin/sh", b"\x7fELF\x02\x01", &[0xff; 64]] {
            assert_eq!(interpreter_in(bytes), None);
        }
        let mut absurd = vec![0xff; 64];
        absurd[..6].copy_from_slice(b"\x7fELF\x02\x01");
        assert_eq!(interpreter_in(&absurd), None);
    }
}
