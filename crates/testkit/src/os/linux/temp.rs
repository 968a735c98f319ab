//! Temporary folders with paths short enough for Unix sockets.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;

/// Longest path of a folder in bytes. A Unix socket's path has at most 107 (`sun_path`), and tests
/// create sockets in subfolders.
const MAX_PATH: usize = 40;

/// Creates a folder that only its owner can access. Uses `/tmp` if the usual place is too deep.
pub(crate) fn folder() -> io::Result<TempDir> {
    let usual = std::env::temp_dir();
    let parent = if usual.as_os_str().len() + "/hv-123456".len() <= MAX_PATH {
        usual
    } else {
        PathBuf::from("/tmp")
    };
    tempfile::Builder::new()
        .prefix("hv-")
        .rand_bytes(6)
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(&parent)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", parent.display())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_temporary_folder_is_private_and_fits_a_socket() {
        let folder = folder().expect("a folder");
        let path = folder.path();
        assert!(path.is_absolute() && path.as_os_str().len() <= MAX_PATH);
        let mode = path.metadata().expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        UnixListener::bind(path.join("run.sock")).expect("a socket in it");
    }
}
