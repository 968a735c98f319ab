//! Adds the library to a command.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;

use hvsock_sys::shared_memory;

/// Names the file with the table of emulated sockets for the library.
pub const TABLE_VARIABLE: &str = "HVSOCK_PRELOAD_TABLE";

/// Has two commands, one a line: the first registers a port, for which `PORT` stands in it, and the second explains why
/// the registry permits no listener for a service, for which `SERVICE` stands. Without them the library says nothing about such a listener.
pub const HELP_VARIABLE: &str = "HVSOCK_PRELOAD_HELP";

/// The length of the table in bytes. Memory is taken as sockets are made.
pub const TABLE_LEN: u64 = 8 * 1024 * 1024;

/// The variable of the dynamic loader with the libraries to load first.
const LD_PRELOAD: &str = "LD_PRELOAD";

/// The library, and the table by which all processes that it is loaded into know their sockets. Keep it as long as
/// they may execute others.
#[derive(Debug)]
pub struct Preload {
    library: PathBuf,
    table: OwnedFd,
}

impl Preload {
    /// A table for the programs that this library is loaded into.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `LD_PRELOAD` cannot have the library's path, since it has a space or a colon; those of
    /// `memfd_create`.
    pub fn new(library: PathBuf) -> io::Result<Self> {
        let path = library.as_os_str().as_encoded_bytes();
        if path.iter().any(|byte| matches!(byte, b' ' | b':')) {
            let text = format!(
                "the path {} has a space or a colon, which LD_PRELOAD cannot name",
                library.display()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let table = shared_memory::create(TABLE_LEN)?;
        Ok(Self { library, table })
    }

    /// Sets the variables by which a command's program, and what that starts, load the library. Libraries that
    /// are already to be preloaded, `others`, come after it.
    pub fn apply(&self, command: &mut Command, others: Option<OsString>) {
        let mut libraries = self.library.clone().into_os_string();
        if let Some(others) = others.filter(|others| !others.is_empty()) {
            libraries.push(":");
            libraries.push(others);
        }
        command.env(LD_PRELOAD, libraries);
        let (process, fd) = (std::process::id(), self.table.as_raw_fd());
        command.env(TABLE_VARIABLE, format!("/proc/{process}/fd/{fd}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_gets_the_library_first_and_the_table() {
        let preload = Preload::new("/lib/a.so".into()).unwrap();
        let mut command = Command::new("true");
        preload.apply(&mut command, Some("/lib/b.so".into()));
        let variable = |name: &str| {
            let found = command.get_envs().find(|(key, _)| *key == name);
            found.unwrap().1.unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(variable(LD_PRELOAD), "/lib/a.so:/lib/b.so");
        let table = std::fs::metadata(variable(TABLE_VARIABLE)).unwrap();
        assert_eq!(table.len(), TABLE_LEN);
        let error = Preload::new("/a b/c.so".into()).unwrap_err();
        assert!(error.to_string().contains("/a b/c.so"), "{error}");
        let mut alone = Command::new("true");
        preload.apply(&mut alone, None);
        let libraries = alone.get_envs().find(|(key, _)| *key == LD_PRELOAD);
        assert_eq!(libraries.unwrap().1, Some("/lib/a.so".as_ref()));
    }
}
