//! Temporary folders for sockets.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A new folder of mode 0700 that is removed with everything in it when this is dropped.
///
/// Its path has at most [`TempFolder::LONGEST`] bytes, because a Unix socket's path has at most
/// 107 and the system's temporary folder may itself be deep.
#[derive(Debug)]
pub struct TempFolder(tempfile::TempDir);

impl TempFolder {
    /// The most bytes that the path of the folder has.
    pub const LONGEST: usize = 40;

    /// Makes one.
    ///
    /// # Panics
    /// If the system has no folder to make it in.
    pub fn new() -> Self {
        let usual = std::env::temp_dir();
        let parent = if usual.as_os_str().len() + "/hv-123456".len() <= Self::LONGEST {
            usual
        } else {
            PathBuf::from("/tmp")
        };
        let folder = tempfile::Builder::new()
            .prefix("hv-")
            .rand_bytes(6)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&parent)
            .unwrap_or_else(|error| panic!("no folder in {}: {error}", parent.display()));
        Self(folder)
    }

    /// The folder's absolute path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The path of an entry in the folder.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }
}

impl Default for TempFolder {
    fn default() -> Self {
        Self::new()
    }
}

impl AsRef<Path> for TempFolder {
    fn as_ref(&self) -> &Path {
        self.path()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_fits_into_a_temporary_folder_that_goes_away() {
        let folder = TempFolder::new();
        let path = folder.path().to_owned();
        assert!(path.is_absolute() && path.as_os_str().len() <= TempFolder::LONGEST);
        let mode = path.metadata().expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        UnixListener::bind(folder.join("run.sock")).expect("a socket in it");
        drop(folder);
        assert!(!path.exists());
    }
}
