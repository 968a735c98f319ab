//! Why a directory cannot be used.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another user may write to it.
    #[error("{} {why}, so other users could change access rules; {}", path.display(), why.advice())]
    Untrusted {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        why: Distrust,
    },
    /// Another user may replace a directory above it, and so this one.
    #[error(
        "{} {why}, so other users could replace {}; {}",
        parent.display(),
        path.display(),
        why.advice_above()
    )]
    UntrustedParent {
        /// The directory that was to be used.
        path: PathBuf,
        /// The directory above it.
        parent: PathBuf,
        /// What is wrong with that one.
        why: Distrust,
    },
    /// A symbolic link on the way to it belongs to another user.
    #[error(
        "{} is a symbolic link of the user {owner}, who could lead {} elsewhere; use the path that it \
         leads to",
        link.display(),
        path.display()
    )]
    ForeignLink {
        /// The directory that was to be used.
        path: PathBuf,
        /// The link.
        link: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Opening or creating it failed.
    #[error("cannot {doing} the folder {}: {error}", path.display())]
    Io {
        /// The failed operation: `open` or `create`.
        doing: &'static str,
        /// The directory.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

/// Why other users could write to a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// It belongs to a user who is neither root nor the current one.
    Owner {
        /// The owner.
        owner: u32,
        /// The current user.
        own: u32,
    },
    /// Its group may write to it.
    Group {
        /// The group.
        gid: u32,
    },
    /// Everyone may write to it.
    Everyone,
}

impl Distrust {
    /// What would correct it.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::Owner { .. } => "give it to the current user or root",
            Self::Group { .. } | Self::Everyone => "let only its owner write to it",
        }
    }

    /// What would correct it in a directory above the one to use, whose owner may need it.
    fn advice_above(self) -> &'static str {
        match self {
            Self::Owner { .. } => "choose another folder",
            Self::Group { .. } | Self::Everyone => self.advice(),
        }
    }
}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner { owner, .. } => write!(
                f,
                "belongs to the user {owner}, not to the current user or root"
            ),
            Self::Group { gid } => write!(f, "is writable by its group ({gid})"),
            Self::Everyone => f.write_str("is writable by everyone"),
        }
    }
}
