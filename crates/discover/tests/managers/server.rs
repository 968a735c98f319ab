//! A server on a Unix socket in a folder of its own.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;

use tempfile::TempDir;

pub struct Server {
    folder: TempDir,
}

impl Server {
    /// Serves each client in turn.
    pub fn new(mut serve: impl FnMut(UnixStream) + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap());
            }
        });
        Self { folder }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// A path at which nothing is.
    pub fn nowhere(&self) -> PathBuf {
        self.folder.path().join("nothing")
    }
}
