//! Temporary folders.

use std::path::{Path, PathBuf};

use crate::os;

/// A private temporary folder. Dropping it removes the folder and everything in it.
///
/// On Linux its path is short enough for Unix sockets in it.
#[derive(Debug)]
pub struct TempFolder(tempfile::TempDir);

impl TempFolder {
    /// Creates a folder.
    ///
    /// # Panics
    /// If the folder cannot be created.
    pub fn new() -> Self {
        Self(os::temp::folder().unwrap_or_else(|error| panic!("no temporary folder: {error}")))
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
    use super::*;

    #[test]
    fn a_dropped_temporary_folder_is_removed_with_its_files() {
        let folder = TempFolder::new();
        let path = folder.path().to_owned();
        assert!(path.is_absolute());
        std::fs::write(folder.join("file"), b"text").expect("a file in it");
        drop(folder);
        assert!(!path.exists());
    }
}
