//! The messages between predecessor and successor, over a connected Unix `SOCK_SEQPACKET` socket.
//!
//! Each is one JSON value. Unknown fields are ignored, so a later release may add some. The order is that of
//! [`Message`]; [`predecessor`](super::predecessor) and [`successor`](super::successor) are the two sides.
//!
//! **The commit point** is the moment at which [`Message::Started`] is in the predecessor's receive queue. Before it
//! only the predecessor may act, after it only the successor. A predecessor that gives up shuts its socket
//! down for receiving, which is atomic with respect to the successor's `sendmsg`: then that message is in the
//! queue, or never will be. So exactly one of them goes on, whichever dies at whichever step.

use serde::{Deserialize, Serialize};

use super::document::{DOCUMENT_VERSION, OLDEST_DOCUMENT_VERSION};

/// The version of the protocol that this release speaks.
pub(crate) const PROTOCOL_VERSION: u32 = 1;

/// The most bytes of a message.
pub(crate) const MAX_MESSAGE: usize = 16 << 10;

/// The most characters of a reason.
const MAX_REASON: usize = 2000;

/// A range of versions, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Versions {
    pub(crate) oldest: u32,
    pub(crate) newest: u32,
}

/// What a release speaks and reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) protocol: Versions,
    pub(crate) document: Versions,
}

/// What one side says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(crate) enum Message {
    /// Successor: what it speaks, and the documents that it reads.
    Hello {
        protocol: Versions,
        document: Versions,
        release: String,
        /// It will not start, but try everything before.
        #[serde(default)]
        dry_run: bool,
    },
    /// Predecessor: what both speak, and the document that it will write.
    Welcome {
        protocol: u32,
        document: u32,
        release: String,
    },
    /// Successor: what takes long is done; nothing visible has happened.
    Prepared,
    /// Predecessor: it is frozen, and the state follows.
    Begin,
    /// Predecessor: a batch of descriptors, which are attached.
    Descriptors { first: u32, count: u32 },
    /// Predecessor: the document, which is attached.
    Document,
    /// Predecessor: that was all.
    End { descriptors: u32, bytes: u64 },
    /// Successor: the state is restored. Only in a dry run.
    Restored,
    /// Successor: it goes on from here. The commit point.
    Started,
    /// Successor: it gives up.
    Failed { reason: String },
    /// Predecessor: it gives up, and goes on itself.
    Abort { reason: String },
}

impl Message {
    pub(crate) fn failed(reason: &str) -> Self {
        let reason = bounded(reason);
        Self::Failed { reason }
    }

    pub(crate) fn abort(reason: &str) -> Self {
        let reason = bounded(reason);
        Self::Abort { reason }
    }

    /// The bytes to send.
    pub(crate) fn encode(&self) -> Vec<u8> {
        // Strings and numbers have a form in JSON.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The message of these bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let message = serde_json::from_slice(bytes);
        message.map_err(|error| format!("a message is not understood: {error}"))
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "hello",
            Self::Welcome { .. } => "welcome",
            Self::Prepared => "prepared",
            Self::Begin => "begin",
            Self::Descriptors { .. } => "descriptors",
            Self::Document => "document",
            Self::End { .. } => "end",
            Self::Restored => "restored",
            Self::Started => "started",
            Self::Failed { .. } => "failed",
            Self::Abort { .. } => "abort",
        }
    }
}

fn bounded(text: &str) -> String {
    text.chars().take(MAX_REASON).collect()
}

impl Known {
    /// What this release knows.
    pub(crate) const OWN: Self = Self {
        protocol: Versions {
            oldest: 1,
            newest: PROTOCOL_VERSION,
        },
        document: Versions {
            oldest: OLDEST_DOCUMENT_VERSION,
            newest: DOCUMENT_VERSION,
        },
    };
}

impl Versions {
    /// The newest version that both know.
    pub(crate) fn common(self, other: Self) -> Option<u32> {
        let (oldest, newest) = (self.oldest.max(other.oldest), self.newest.min(other.newest));
        (oldest <= newest).then_some(newest)
    }

    pub(crate) fn contains(self, version: u32) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.oldest == self.newest {
            true => write!(f, "version {}", self.newest),
            false => write!(f, "versions {} to {}", self.oldest, self.newest),
        }
    }
}
