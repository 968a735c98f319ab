//! Where the inputs of a target are.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::run;

/// A target, as the program lists it.
#[derive(Clone, Debug)]
pub struct Target {
    pub name: String,
    pub max_len: String,
    /// Seconds of one input.
    pub timeout: String,
}

/// The folders of a target.
pub struct Folders {
    /// What is committed.
    pub corpus: PathBuf,
    pub regressions: PathBuf,
    /// What the fuzzer has found.
    pub found: PathBuf,
    pub crashes: PathBuf,
}

impl Folders {
    /// Those of a target, of which the own ones exist.
    pub fn of(target: &str) -> io::Result<Self> {
        let (committed, own) = (run::root().join("fuzz"), run::root().join("target/fuzz"));
        let folders = Self {
            corpus: committed.join("corpus").join(target),
            regressions: committed.join("regressions").join(target),
            found: own.join("corpus").join(target),
            crashes: own.join("crashes").join(target),
        };
        fs::create_dir_all(&folders.found)?;
        fs::create_dir_all(&folders.crashes)?;
        Ok(folders)
    }

    /// The folders with inputs that exist, the one to which the fuzzer adds first.
    pub fn inputs(&self) -> Vec<&Path> {
        let all = [&self.found, &self.corpus, &self.regressions];
        let all = all.map(PathBuf::as_path).into_iter();
        all.filter(|folder| folder.exists()).collect()
    }
}

/// The files of a folder, by name. A missing folder has none.
pub fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    let mut paths: Vec<_> = entries.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    Ok(paths)
}
