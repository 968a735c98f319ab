//! Temporary folders that sockets fit into.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;

/// The most bytes that the path of a folder has: a Unix socket's path has at most 107, and the
/// system's temporary folder may itself be deep.
const LONGEST: usize = 40;

/// A new folder that is its owner's alone.
pub(crate) fn folder() -> io::Result<TempDir> {
    let usual = std::env::temp_dir();
    let parent = if usual.as_os_str().len() + "/hv-123456".len() <= LONGEST {
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
    fn a_socket_fits_into_a_temporary_folder_that_nobody_else_may_enter() {
        let folder = folder().expect("a folder");
        let path = folder.path();
        assert!(path.is_absolute() && path.as_os_str().len() <= LONGEST);
        let mode = path.metadata().expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        UnixListener::bind(path.join("run.sock")).expect("a socket in it");
    }
}
