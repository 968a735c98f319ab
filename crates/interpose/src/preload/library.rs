//! Where the library is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Names the library's file, in place of the search.
pub const LIBRARY_VARIABLE: &str = "HVSOCK_PRELOAD_LIB";

/// The file names of the library: as it is installed, and as cargo builds it.
pub const LIBRARY_NAMES: [&str; 2] = ["libhvsock-preload.so", "libhvsock_preload.so"];

/// The folders with the library, as seen from the folder of the command: beside it, where packages install it, and
/// for examples and tests in cargo's target folder.
const FOLDERS: [&str; 5] = [".", "../lib/hvsock", "../lib", "..", "examples"];

/// The library is not where it is looked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no {} in {}", LIBRARY_NAMES[0], list(.searched))]
pub struct NoLibrary {
    /// The files that do not exist.
    pub searched: Vec<PathBuf>,
}

fn list(searched: &[PathBuf]) -> String {
    let mut folders: Vec<_> = searched.iter().filter_map(|path| path.parent()).collect();
    folders.dedup();
    let folders: Vec<_> = folders
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    folders.join(", ")
}

/// Looks for the library: the value of [`LIBRARY_VARIABLE`], if there is one, and no other; else the usual places
/// relative to the command's file.
///
/// # Errors
///
/// [`NoLibrary`] if it is in none of them.
pub fn find_library(named: Option<OsString>, command: &Path) -> Result<PathBuf, NoLibrary> {
    let folder = command.parent().unwrap_or(Path::new("/"));
    let candidates: Vec<PathBuf> = match named.filter(|named| !named.is_empty()) {
        Some(named) => vec![PathBuf::from(named)],
        None => {
            let folders = FOLDERS.iter().map(|place| folder.join(place));
            let files = |folder: PathBuf| LIBRARY_NAMES.map(|name| folder.join(name));
            folders.flat_map(files).collect()
        }
    };
    // The loader takes a relative path for that of the program's working folder.
    let found = candidates.iter().find(|path| path.is_file());
    let found = found.and_then(|path| path.canonicalize().ok());
    found.ok_or(NoLibrary {
        searched: candidates,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_library_is_beside_the_command_or_where_packages_install_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let command = root.join("bin/hvsock");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::create_dir_all(root.join("lib/hvsock")).unwrap();
        let missing = find_library(None, &command).unwrap_err();
        assert!(
            missing.to_string().contains("bin/../lib/hvsock"),
            "{missing}"
        );
        let packaged = root.join("lib/hvsock/libhvsock-preload.so");
        fs::write(&packaged, "").unwrap();
        assert_eq!(find_library(None, &command), Ok(packaged));
        let beside = root.join("bin/libhvsock_preload.so");
        fs::write(&beside, "").unwrap();
        assert_eq!(find_library(None, &command), Ok(beside));
    }

    #[test]
    fn a_named_library_is_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let command = dir.path().join("hvsock");
        fs::write(dir.path().join(LIBRARY_NAMES[0]), "").unwrap();
        let other = dir.path().canonicalize().unwrap().join("other.so");
        let named = || Some(OsString::from(&other));
        let missing = find_library(named(), &command).unwrap_err();
        assert_eq!(missing.searched, std::slice::from_ref(&other));
        fs::write(&other, "").unwrap();
        assert_eq!(find_library(named(), &command), Ok(other));
        assert!(find_library(Some(OsString::new()), &command).is_ok());
    }
}
