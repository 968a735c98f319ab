//! A file that a guest gets.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::program;

/// A file in a guest's initramfs.
#[derive(Debug, Clone)]
pub struct File {
    pub(crate) path: String,
    pub(crate) mode: u32,
    pub(crate) source: Source,
}

#[derive(Debug, Clone)]
pub(crate) enum Source {
    Host(PathBuf),
    Bytes(Vec<u8>),
}

impl File {
    /// A copy of a host file, with its mode.
    ///
    /// # Errors
    ///
    /// The file's metadata cannot be read.
    pub fn copy(host: impl Into<PathBuf>, guest: impl Into<String>) -> io::Result<Self> {
        let host = host.into();
        let mode = fs::metadata(&host)?.permissions().mode();
        Ok(Self {
            path: guest.into(),
            mode,
            source: Source::Host(host),
        })
    }

    /// A file with the given content and permission bits.
    pub fn bytes(guest: impl Into<String>, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        Self {
            path: guest.into(),
            mode,
            source: Source::Bytes(content.into()),
        }
    }

    /// A host program and its shared libraries, which keep their paths.
    ///
    /// # Errors
    ///
    /// The program cannot be read, or a library is missing.
    pub fn program(host: &Path, guest: impl Into<String>) -> io::Result<Vec<Self>> {
        let mut files = vec![Self::copy(host, guest)?];
        for library in program::libraries(host)? {
            let path = library.to_string_lossy().into_owned();
            files.push(Self::copy(library, path)?);
        }
        Ok(files)
    }
}
