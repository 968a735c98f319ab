//! Requests to a back-end.

use std::sync::Arc;
use std::time::Duration;

use hvsock_endpoint::Flags;

use crate::HvAddr;

/// The timeout of a reply that depends on the broker alone.
pub(crate) const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// A request for a connection or a listener.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) address: HvAddr,
    pub(crate) kind: RequestKind,
    pub(crate) settings: Settings,
    pub(crate) flags: Flags,
    /// What the connection is for, for the broker's audit.
    #[cfg_attr(windows, expect(dead_code, reason = "Windows has no broker"))]
    pub(crate) description: Option<Arc<Description>>,
}

/// What a connection is for, as this process says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) action: String,
    pub(crate) detail: String,
}

impl Request {
    /// The dry run of this request, if its refusal has to be explained.
    pub(crate) fn question(&self) -> Option<Self> {
        let Flags {
            explain, raw_fd, ..
        } = self.flags;
        explain.then(|| Self {
            flags: Flags {
                raw_fd,
                dry_run: true,
                explain: false,
            },
            description: None,
            ..self.clone()
        })
    }
}

/// The kind of a request, with its parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RequestKind {
    Connect { timeout_ms: u32 },
    Listen { backlog: u32 },
}

/// Options that apply to a socket from its creation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) container_passthru: bool,
    pub(crate) connected_suspend: bool,
    pub(crate) high_vtl: bool,
    /// The requested capacity in bytes of each direction of a ring; 0 for the default.
    pub(crate) ring_size: u32,
    /// The bytes must go through descriptors and not through shared memory.
    pub(crate) descriptor_only: bool,
    /// A connection must have memory of its own, and not share an arena with others.
    pub(crate) own_memory: bool,
}
