//! What a copy must not overwrite: its own source, and what it has written itself.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, AtFlags, Mode, OFlags, Stat};

use super::super::identity;
use super::super::message_stream::Link;
use super::super::name::Name;
use super::Receiver;

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

/// The entries that the copy has written into one folder, by [`identity::local`]. Names do not
/// suffice: a filesystem may take different names for the same.
#[derive(Debug, Default)]
pub(super) struct Written(HashSet<u64>);

impl Written {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl<L: Link> Receiver<'_, L> {
    /// Checks that an entry may be written to this name. `source` is its identity at the sender.
    pub(super) fn check_clash(&self, name: &Name, source: u64) -> Result<(), Clash> {
        let folder = self.current_folder();
        let stat = |flags| fs::statat(folder, name.as_os_str(), flags).ok();
        let Some(there) = stat(AtFlags::SYMLINK_NOFOLLOW) else {
            return Ok(());
        };
        let is_source = |stat: &Stat| source != 0 && identity::shared(stat) == source;
        // Also if it is written through a symbolic link.
        if is_source(&there) || stat(AtFlags::empty()).is_some_and(|there| is_source(&there)) {
            return Err(Clash::Source);
        }
        match self.written().0.contains(&identity::local(&there)) {
            true => Err(Clash::Written),
            false if self.remembered >= MAX_WRITTEN => Err(Clash::Unknown),
            false => Ok(()),
        }
    }

    /// Checks a folder's identity at the sender: it must not be one that the copy is writing into.
    pub(super) fn check_folder(&mut self, source: u64) -> Result<(), Clash> {
        if source == 0 {
            return Ok(());
        }
        if self.ancestors.is_empty() {
            self.ancestors = ancestors(&self.destination.folder);
        }
        let inside = || self.levels.iter().map(|level| level.identity);
        match self.ancestors.contains(&source) || inside().any(|level| level == source) {
            true => Err(Clash::Itself),
            false => Ok(()),
        }
    }

    /// Remembers an entry that was written into the current folder.
    pub(super) fn remember(&mut self, stat: &Stat) {
        if self.remembered < MAX_WRITTEN && self.written_mut().0.insert(identity::local(stat)) {
            self.remembered += 1;
        }
    }

    /// What was written into the current folder. The contents of a source without a name share the
    /// destination with the other sources.
    fn written(&self) -> &Written {
        match self.levels.last() {
            Some(level) => level.written.as_ref().unwrap_or(&self.written),
            None => &self.written,
        }
    }

    fn written_mut(&mut self) -> &mut Written {
        match self.levels.last_mut() {
            Some(level) => level.written.as_mut().unwrap_or(&mut self.written),
            None => &mut self.written,
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
