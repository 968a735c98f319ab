//! What was copied, as both ends count it. They compare it at the end, so that neither can
//! acknowledge something else than what was sent.

use twox_hash::XxHash3_128;

use crate::wire::copy as wire;

/// The entries that were sent or stored, and the checksum of all of them in order.
#[derive(Clone)]
pub(super) struct Tally {
    files: u64,
    folders: u64,
    symlinks: u64,
    sum: XxHash3_128,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            files: 0,
            folders: 0,
            symlinks: 0,
            sum: XxHash3_128::new(),
        }
    }

    /// A folder is entered. The name is the one in the message.
    pub(super) fn enter(&mut self, name: &[u8]) {
        self.folders += 1;
        self.sum.write(&[1]);
        self.bytes(name);
    }

    /// A folder is complete.
    pub(super) fn leave(&mut self) {
        self.sum.write(&[2]);
    }

    /// A file is complete, with this checksum.
    pub(super) fn file(&mut self, name: &[u8], checksum: &[u8; 16]) {
        self.files += 1;
        self.sum.write(&[3]);
        self.sum.write(checksum);
        self.bytes(name);
    }

    /// A symbolic link.
    pub(super) fn symlink(&mut self, name: &[u8], target: &[u8]) {
        self.symlinks += 1;
        self.sum.write(&[4]);
        self.bytes(target);
        self.bytes(name);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.sum.write(&(bytes.len() as u64).to_le_bytes());
        self.sum.write(bytes);
    }

    /// Files and symbolic links.
    pub(super) fn files(&self) -> u64 {
        self.files + self.symlinks
    }

    /// Whether the other end's count is of exactly the same entries.
    pub(super) fn equals(&self, other: Option<&wire::Tally>) -> bool {
        other == Some(&self.to_wire())
    }

    /// Whether the other end may have stored that many entries, with some failed.
    pub(super) fn covers(&self, other: &wire::Tally) -> bool {
        other.files <= self.files
            && other.folders <= self.folders
            && other.symlinks <= self.symlinks
    }

    pub(super) fn to_wire(&self) -> wire::Tally {
        wire::Tally {
            files: self.files,
            folders: self.folders,
            symlinks: self.symlinks,
            checksum: self.sum.finish_128().to_le_bytes().to_vec().into(),
        }
    }
}
