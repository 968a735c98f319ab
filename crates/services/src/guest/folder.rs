//! Creating folders with a mode that the umask does not change.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

/// Creates a folder and its missing parents, each with exactly the mode `mode`. Leaves existing ones as
/// they are.
///
/// # Errors
///
/// The system's error.
pub(super) fn create(folder: &Path, mode: u32) -> io::Result<()> {
    let missing = folder
        .ancestors()
        .take_while(|above| !above.as_os_str().is_empty() && fs::symlink_metadata(above).is_err());
    let missing: Vec<&Path> = missing.collect();
    for folder in missing.into_iter().rev() {
        match DirBuilder::new().mode(0o700).create(folder) {
            Ok(()) => fs::set_permissions(folder, Permissions::from_mode(mode))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_folders_have_the_wanted_mode_and_existing_ones_keep_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        // A folder with the set-group-id bit passes it on to new ones.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o2700)).unwrap();
        let (above, below) = (folder.path().join("a"), folder.path().join("a/b"));
        create(&below, 0o755).unwrap();
        assert_eq!((mode(&above), mode(&below)), (0o755, 0o755));
        create(&below, 0o700).unwrap();
        assert_eq!((mode(&above), mode(&below)), (0o755, 0o755));
        assert_eq!(mode(folder.path()), 0o2700);
    }
}
