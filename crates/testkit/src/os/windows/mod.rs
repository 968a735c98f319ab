//! The Windows half.

/// Does nothing: Windows has no limit on handles.
pub(crate) fn raise_descriptor_limit() {}

/// Temporary folders.
pub(crate) mod temp {
    use std::io;

    use tempfile::TempDir;

    /// Creates a folder. The user's temporary folder is private already.
    pub(crate) fn folder() -> io::Result<TempDir> {
        tempfile::Builder::new().prefix("hv-").tempdir()
    }
}
