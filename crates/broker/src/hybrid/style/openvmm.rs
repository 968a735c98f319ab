//! OpenVMM (`--virtio-vsock-path`, `--vmbus-vsock-path`).
//!
//! By its sources (`support/hybrid_vsock/src/lib.rs`): a line has a port or a GUID, in at most 45 bytes. For a
//! guest's connect it looks for the socket of the port, then for that of the GUID, which is in lower case.

use super::features::{Connects, Style};

pub(super) const STYLE: Style = Style {
    connects: Connects::ByLine,
    has_guids: true,
    half_close: true,
};
