//! What a copy must not overwrite: its own source, and what it has written itself.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, AtFlags, Mode, OFlags, Stat};

use super::super::identity;
use super::super::name::Name;

/// The most entries in folders that are being filled, which a copy remembers.
const MAX_WRITTEN: usize = 1 << 20;

/// The most folders above the destination.
const MAX_ANCESTORS: usize = 4096;

/// Why an entry must not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Clash {
    #[error("source and destination are the same")]
    Source,
    #[error("the destination is within this folder")]
    Itself,
    #[error("it would replace another entry of this copy")]
    Written,
    #[error("it exists, and the copy is too large to tell whether it has written it itself")]
    Unknown,
}

impl From<Clash> for std::io::Error {
    fn from(clash: Clash) -> Self {
        Self::other(clash)
    }
}

/// What one copy has written, and where it is writing.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// What was written into the destination, by [`identity::local`]. Names do not suffice: a
    /// filesystem may take different names for the same.
    top: HashSet<u64>,
    /// The folders that are being filled, from the destination down.
    levels: Vec<Option<Level>>,
    /// How many entries all sets have.
    count: usize,
    /// The destination's folder and those above it, by [`identity::shared`]; empty before they are needed.
    ancestors: Vec<u64>,
}

#[derive(Debug)]
struct Level {
    identity: u64,
    written: HashSet<u64>,
}

impl Written {
    /// Checks that an entry may be written to this name. `source` is its identity at the sender.
    pub(super) fn check(&self, folder: &OwnedFd, name: &Name, source: u64) -> Result<(), Clash> {
        let stat = |flags| fs::statat(folder, name.as_os_str(), flags).ok();
        let Some(there) = stat(AtFlags::SYMLINK_NOFOLLOW) else {
            return Ok(());
        };
        let is_source = |stat: &Stat| source != 0 && identity::shared(stat) == source;
        // Also if it is written through a symbolic link.
        if is_source(&there) || stat(AtFlags::empty()).is_some_and(|there| is_source(&there)) {
            return Err(Clash::Source);
        }
        let written = match self.levels.last() {
            Some(Some(level)) => &level.written,
            Some(None) | None => &self.top,
        };
        match written.contains(&identity::local(&there)) {
            true => Err(Clash::Written),
            false if self.count >= MAX_WRITTEN => Err(Clash::Unknown),
            false => Ok(()),
        }
    }

    /// Checks a folder's identity at the sender: it must not be one that the copy is writing into.
    pub(super) fn check_folder(&mut self, top: &OwnedFd, source: u64) -> Result<(), Clash> {
        if source == 0 {
            return Ok(());
        }
        if self.ancestors.is_empty() {
            self.ancestors = ancestors(top);
        }
        let mut inside = self.levels.iter().flatten().map(|level| level.identity);
        match self.ancestors.contains(&source) || inside.any(|level| level == source) {
            true => Err(Clash::Itself),
            false => Ok(()),
        }
    }

    /// Remembers an entry that was written into the current folder.
    pub(super) fn remember(&mut self, stat: &Stat) {
        let written = match self.levels.last_mut() {
            Some(Some(level)) => &mut level.written,
            Some(None) | None => &mut self.top,
        };
        if self.count < MAX_WRITTEN && written.insert(identity::local(stat)) {
            self.count += 1;
        }
    }

    /// A folder is entered. `None` is the destination itself: the contents of a source without a name
    /// share it with the other sources.
    pub(super) fn enter(&mut self, folder: Option<&Stat>) {
        self.levels.push(folder.map(|stat| Level {
            identity: identity::shared(stat),
            written: HashSet::new(),
        }));
    }

    /// The current folder is complete. Nothing is written into it again, because its own name is
    /// remembered in the folder above.
    pub(super) fn leave(&mut self) {
        if let Some(Some(level)) = self.levels.pop() {
            self.count -= level.written.len();
        }
    }
}

/// The identities of a folder and of all folders above it.
fn ancestors(folder: impl AsFd) -> Vec<u64> {
    let mut all = Vec::new();
    let mut next: Option<OwnedFd> = folder.as_fd().try_clone_to_owned().ok();
    while let Some(folder) = next.take()
        && let Ok(stat) = fs::fstat(&folder)
    {
        let identity = identity::shared(&stat);
        // The root is its own parent.
        if all.last() == Some(&identity) || all.len() == MAX_ANCESTORS {
            break;
        }
        all.push(identity);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        next = fs::openat(&folder, "..", flags, Mode::empty()).ok();
    }
    all
}
