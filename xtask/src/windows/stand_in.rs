//! Programs that are run over a stand-in for AF_HYPERV, which Wine does not have.
//!
//! The stand-in is a DLL that does what `ws2_32.dll` does and AF_HYPERV as well. So that what is
//! tested is the very program that ships, nothing in it knows of that: a copy of the program is run
//! in whose import table the one DLL's name is replaced by the other's, which has the same length.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What the stand-in takes the place of.
const REPLACED: &str = "ws2_32.dll";
/// The stand-in. Its name has as many bytes.
const STAND_IN: &str = "hv2_32.dll";
/// The variable that tells a test over the stand-in in which folder it finds the other programs of
/// its build, so changed, under their own names.
pub const VARIABLE: &str = "HVSOCK_TEST_STAND_IN";

/// Whether a program asks by its name to be run over the stand-in: a test target `stand_in` does.
pub fn is_meant_for(program: &str) -> bool {
    let name = Path::new(program)
        .file_name()
        .and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("stand_in"))
}

/// Changed copies of a program and of those beside it.
pub struct Copies {
    pub program: PathBuf,
    pub folder: PathBuf,
}

/// Makes them, in the folder `stand-in` of the program's folder, where they are older or missing.
pub fn copies(program: &Path) -> Result<Copies> {
    let program = program
        .canonicalize()
        .with_context(|| format!("there is no {}", program.display()))?;
    let beside = program.parent().context("a program is in a folder")?;
    // Test programs are in a folder of their own below that of the others.
    let others = match beside.file_name() {
        Some(name) if name == "deps" => beside.parent().unwrap_or(beside),
        _ => beside,
    };
    let folder = others.join("stand-in");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
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
                    name.copy_from_slice(STAND_IN.as_bytes());
                }
            }
            Ok(bytes)
        })
        .with_context(|| format!("cannot change {}", program.display()))?;
    // Under its name only when it is whole: another run may be at it, too.
    let unfinished = folder.join(format!("{}.{}", name.display(), std::process::id()));
    fs::write(&unfinished, changed)?;
    fs::rename(&unfinished, &copy).with_context(|| format!("cannot make {}", copy.display()))?;
    Ok(copy)
}

/// Where in a program the names of the DLLs are that it imports. Offsets are those of Microsoft's
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
        bail!("no section holds the address {address:#x}")
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
    let field = bytes.get(offset..offset + 2).context("it is cut short")?;
    Ok(u16::from_le_bytes([field[0], field[1]]).into())
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<usize> {
    let field = bytes.get(offset..offset + 4).context("it is cut short")?;
    Ok(u32::from_le_bytes([field[0], field[1], field[2], field[3]]) as usize)
}
