//! The native protocol of systemd's journal: structured entries over a datagram socket.
//!
//! An entry is a list of fields. A value without line breaks is `NAME=value\n`; any other one is
//! `NAME\n`, its length as 64 bits in little-endian order, the value and `\n`
//! (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// Where the system's journal listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// A sender of entries.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

/// An entry to be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry(Vec<u8>);

impl Entry {
    /// Adds a field. `name` has capital letters, digits and underscores, and begins with a letter; the
    /// journal ignores other names.
    #[must_use]
    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.0.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            self.0.push(b'\n');
            self.0
                .extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'\n');
        self
    }

    /// Adds a field if it has a value.
    #[must_use]
    pub fn optional(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.field(name, value),
            None => self,
        }
    }

    /// The bytes of the datagram.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Journal {
    /// A sender to the journal that listens at `path`, if one does.
    ///
    /// # Errors
    ///
    /// `NotFound` or `ConnectionRefused` if none does; any error of making a socket.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Connecting and sending separately: a connected socket would not survive a restart of the
        // journal.
        UnixDatagram::unbound()?.connect(path)?;
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
        })
    }

    /// Sends an entry. Does not block.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if the journal's queue is full; an error of sendto(2) if it is gone.
    pub fn send(&self, entry: &Entry) -> io::Result<()> {
        self.socket.send_to(entry.as_bytes(), &self.path).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_with_a_line_break_cannot_add_a_field() {
        let entry = Entry::default()
            .field("MESSAGE", "a=b")
            .optional("HVSOCK_USER", None)
            .optional("HVSOCK_DETAIL", Some("x\nHVSOCK_UID=0"));
        let mut expected = b"MESSAGE=a=b\nHVSOCK_DETAIL\n".to_vec();
        expected.extend_from_slice(&14_u64.to_le_bytes());
        expected.extend_from_slice(b"x\nHVSOCK_UID=0\n");
        assert_eq!(entry.as_bytes(), expected);
    }

    #[test]
    fn an_entry_reaches_the_socket_also_after_the_journal_was_restarted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        assert!(Journal::open(&path).is_err());
        let first = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::open(&path).unwrap();
        let entry = Entry::default().field("MESSAGE", "one");
        journal.send(&entry).unwrap();
        drop(first);
        assert!(journal.send(&entry).is_err());
        std::fs::remove_file(&path).unwrap();
        let second = UnixDatagram::bind(&path).unwrap();
        journal.send(&entry).unwrap();
        let mut bytes = [0; 64];
        let count = second.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..count], b"MESSAGE=one\n");
    }
}
