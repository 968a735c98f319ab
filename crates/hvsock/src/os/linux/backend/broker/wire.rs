//! Conversions from the wire format to the library's types.

use hvsock_address::{ServiceId, VmId};
use hvsock_endpoint::{Incoming, Refused};

use super::errors;
use crate::{Explanation, HvAddr, Peer, Verdict};

impl Peer {
    pub(super) fn of_wire(incoming: Incoming) -> Self {
        let known = |id: u32| Some(id).filter(|id| *id != u32::MAX);
        Self {
            partition: incoming.partition,
            pid: Some(incoming.pid).filter(|pid| *pid != 0),
            uid: known(incoming.uid),
            gid: known(incoming.gid),
        }
    }
}

/// Reads `EXPLAINED` as docs/endpoint.md specifies it. `verdict` is that of a request that nothing
/// refuses.
pub(super) fn explanation(explained: &Refused, verdict: Verdict) -> Explanation {
    let (detail, lines) = match explained.detail.split_once('\n') {
        Some((detail, lines)) => (detail, lines),
        None => (explained.detail.as_str(), ""),
    };
    let refused = Refused {
        detail: detail.to_owned(),
        ..*explained
    };
    let verdict = match explained.code {
        0 => Ok(verdict),
        _ => Err(errors::refusal(&refused)),
    };
    Explanation::from_lines(verdict, lines)
}

impl HvAddr {
    /// The same service in another partition.
    pub(super) fn at(&self, partition: VmId) -> Self {
        Self {
            partition: partition.into(),
            ..self.clone()
        }
    }

    /// Another service in the same partition.
    pub(super) fn of(&self, service: ServiceId) -> Self {
        Self {
            service: service.into(),
            ..self.clone()
        }
    }
}
