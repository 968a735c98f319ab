//! Windows.

/// A process has as many handles as it likes.
pub(crate) fn raise_descriptor_limit() {}

/// Temporary folders.
pub(crate) mod temp {
    use std::io;

    use tempfile::TempDir;

    /// A new folder; the user's temporary folder is theirs alone already.
    pub(crate) fn folder() -> io::Result<TempDir> {
        tempfile::Builder::new().prefix("hv-").tempdir()
    }
}
