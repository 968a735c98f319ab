//! Runs programs over the AF_HYPERV shim, since Wine has no AF_HYPERV.
//!
//! The shim is a DLL that exports the functions of `ws2_32.dll` and adds AF_HYPERV. The tested program is
//! the one that ships and has no hook: the test runs a copy whose import table names the shim instead.
//! Both names have the same length.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The DLL that the shim replaces.
const REPLACED: &str = "ws2_32.dll";
/// The shim. Its name has the same length.
const SHIM: &str = "hv2_32.dll";
/// The variable that names to a test the folder with the patched copies of the build's other
/// programs.
pub const VARIABLE: &str = "HVSOCK_TEST_SHIM";

/// Whether a program runs over the shim by default: test targets named `shim…` do.
pub fn is_meant_for(program: &str) -> bool {
    let name = Path::new(program)
        .file_name()
        .and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("shim"))
}

/// Patched copies of a program and of the programs beside it.
pub struct Copies {
    pub program: PathBuf,
    pub folder: PathBuf,
}

/// Creates the copies that are missing or out of date, in the folder `shim` beside the program.
pub fn copies(program: &Path) -> Result<Copies> {
    let program = program
        .canonicalize()
        .with_context(|| format!("there is no {}", program.display()))?;
    let beside = program.parent().context("a program is in a folder")?;
    // Cargo puts test programs into the subfolder `deps`.
    let others = match beside.file_name() {
        Some(name) if name == "deps" => beside.parent().unwrap_or(beside),
        _ => beside,
    };
    let folder = others.join("shim");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for entry in fs::read_dir(others)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "exe") {
            copy(&path, &folder)?;
        }
    }
    Ok(Copies {
        program: copy(&program, &folder)?,
        folder,
    })
}

fn copy(program: &Path, folder: &Path) -> Result<PathBuf> {
    let name = program.file_name().context("a program has a name")?;
    let copy = folder.join(name);
    let time = |path: &Path| fs::metadata(path).and_then(|it| it.modified());
    if time(&copy).is_ok_and(|copied| time(program).is_ok_and(|original| original <= copied)) {
        return Ok(copy);
    }
    let changed = fs::read(program)
        .map_err(anyhow::Error::from)
        .and_then(|mut bytes| {
            let names = imports(&bytes).context("not a 64-bit program for Windows")?;
            for name in names {
                let name = &mut bytes[name];
                if name.eq_ignore_ascii_case(REPLACED.as_bytes()) {
                    name.copy_from_slice(SHIM.as_bytes());
                }
            }
            Ok(bytes)
        })
        .with_context(|| format!("cannot patch {}", program.display()))?;
    // Renamed when complete: another run may write it at the same time.
    let unfinished = folder.join(format!("{}.{}", name.display(), std::process::id()));
    fs::write(&unfinished, changed)?;
    fs::rename(&unfinished, &copy).with_context(|| format!("cannot create {}", copy.display()))?;
    Ok(copy)
}

/// The byte ranges of the imported DLLs' names. Offsets are from Microsoft's
/// "PE Format" (learn.microsoft.com/windows/win32/debug/pe-format).
fn imports(bytes: &[u8]) -> Result<Vec<Range<usize>>> {
    let header = u32_at(bytes, 0x3c)?;
    if bytes.get(header..header + 4) != Some(b"PE\0\0") {
        bail!("no PE header");
    }
    let sections = u16_at(bytes, header + 6)?;
    let optional = header + 24;
    if u16_at(bytes, optional)? != 0x20b {
        bail!("not PE32+");
    }
    let first_section = optional + u16_at(bytes, header + 20)?;
    let to_offset = |address: usize| -> Result<usize> {
        for section in (0..sections).map(|index| first_section + 40 * index) {
            let start = u32_at(bytes, section + 12)?;
            let size = u32_at(bytes, section + 16)?;
            if (start..start + size).contains(&address) {
                return Ok(address - start + u32_at(bytes, section + 20)?);
            }
        }
        bail!("no section contains the address {address:#x}")
    };
    // The second of the data directories, which begin at 112.
    let mut entry = to_offset(u32_at(bytes, optional + 120)?)?;
    let mut names = Vec::new();
    loop {
        let name = u32_at(bytes, entry + 12)?;
        if name == 0 {
            return Ok(names);
        }
        let start = to_offset(name)?;
        let rest = bytes.get(start..).context("a name beyond the end")?;
        let length = rest.iter().position(|byte| *byte == 0);
        names.push(start..start + length.context("a name without an end")?);
        entry += 20;
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> Result<usize> {
    let field = bytes
        .get(offset..offset + 2)
        .context("the file is truncated")?;
    Ok(u16::from_le_bytes([field[0], field[1]]).into())
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<usize> {
    let field = bytes
        .get(offset..offset + 4)
        .context("the file is truncated")?;
    Ok(u32::from_le_bytes([field[0], field[1], field[2], field[3]]) as usize)
}
