//! The committed inputs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::list::TARGETS;
use crate::target::Target;

/// A committed input.
#[derive(Debug)]
pub struct Input {
    /// Its file.
    pub path: PathBuf,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// The folder of this package, or of a kind of its files (`corpus`, `regressions`).
pub fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(kind)
}

/// The committed inputs of a target: its corpus, then its regressions, each by name.
///
/// # Errors
/// If a folder or file cannot be read. A missing folder has no files.
pub fn inputs(target: &Target) -> io::Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for kind in ["corpus", "regressions"] {
        let folder = folder(kind).join(target.name);
        if !folder.exists() {
            continue;
        }
        let entries = fs::read_dir(&folder)?.collect::<io::Result<Vec<_>>>()?;
        let mut paths: Vec<_> = entries.iter().map(fs::DirEntry::path).collect();
        paths.sort();
        for path in paths {
            let bytes = fs::read(&path)?;
            inputs.push(Input { path, bytes });
        }
    }
    Ok(inputs)
}

/// Writes the seeds of all targets below `to`, as `TARGET/seed-NAME`. Returns their number.
///
/// # Errors
/// If a file cannot be written.
pub fn write_seeds(to: &Path) -> io::Result<usize> {
    let mut count = 0;
    for target in TARGETS {
        let folder = to.join(target.name);
        fs::create_dir_all(&folder)?;
        for (name, bytes) in (target.seeds)() {
            fs::write(folder.join(format!("seed-{name}")), bytes)?;
            count += 1;
        }
    }
    Ok(count)
}
