//! Where the library is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Names the library's file, in place of the search.
pub const LIBRARY_VARIABLE: &str = "HVSOCK_PRELOAD_LIB";

/// The file names of the library: as it is installed, and as cargo builds it.
pub const LIBRARY_NAMES: [&str; 2] = ["libhvsock-preload.so", "libhvsock_preload.so"];

/// The file name of the library for programs of musl. A library is linked with one C library, as a program is.
pub const MUSL_LIBRARY_NAME: &str = "libhvsock-preload-musl.so";

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
/// relative to the command's file. The one for programs of musl comes last.
///
/// # Errors
///
/// [`NoLibrary`] if there is none in any of them.
pub fn find_libraries(named: Option<OsString>, command: &Path) -> Result<Vec<PathBuf>, NoLibrary> {
    let folder = command.parent().unwrap_or(Path::new("/"));
    let in_folders = |names: &[&str]| -> Vec<PathBuf> {
        let folders = FOLDERS.iter().map(|place| folder.join(place));
        let files = |folder: PathBuf| -> Vec<PathBuf> {
            names.iter().map(|name| folder.join(name)).collect()
        };
        folders.flat_map(files).collect()
    };
    let kinds = match named.filter(|named| !named.is_empty()) {
        Some(named) => vec![vec![PathBuf::from(named)]],
        None => vec![in_folders(&LIBRARY_NAMES), in_folders(&[MUSL_LIBRARY_NAME])],
    };
    let first = |candidates: &Vec<PathBuf>| {
        let found = candidates.iter().find(|path| path.is_file());
        // The loader takes a relative path for that of the program's working folder.
        found.and_then(|path| path.canonicalize().ok())
    };
    let found: Vec<_> = kinds.iter().filter_map(first).collect();
    match found.is_empty() {
        true => Err(NoLibrary {
            searched: kinds.into_iter().next().unwrap_or_default(),
        }),
        false => Ok(found),
    }
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
        let missing = find_libraries(None, &command).unwrap_err();
        assert!(
            missing.to_string().contains("bin/../lib/hvsock"),
            "{missing}"
        );
        let packaged = root.join("lib/hvsock/libhvsock-preload.so");
        fs::write(&packaged, "").unwrap();
        assert_eq!(find_libraries(None, &command), Ok(vec![packaged.clone()]));
        let musl = root.join("lib/hvsock").join(MUSL_LIBRARY_NAME);
        fs::write(&musl, "").unwrap();
        let both = vec![packaged, musl.clone()];
        assert_eq!(find_libraries(None, &command), Ok(both));
        let beside = root.join("bin/libhvsock_preload.so");
        fs::write(&beside, "").unwrap();
        assert_eq!(find_libraries(None, &command), Ok(vec![beside, musl]));
    }

    #[test]
    fn a_named_library_is_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let command = dir.path().join("hvsock");
        fs::write(dir.path().join(LIBRARY_NAMES[0]), "").unwrap();
        let other = dir.path().canonicalize().unwrap().join("other.so");
        let named = || Some(OsString::from(&other));
        let missing = find_libraries(named(), &command).unwrap_err();
        assert_eq!(missing.searched, std::slice::from_ref(&other));
        fs::write(&other, "").unwrap();
        assert_eq!(find_libraries(named(), &command), Ok(vec![other]));
        assert!(find_libraries(Some(OsString::new()), &command).is_ok());
    }
}
