//! Firecracker, and the VMMs that do exactly as it does: vhost-device-vsock, Dragonball, and Cloud
//! Hypervisor before v53.
//!
//! By its sources (`src/vmm/src/devices/virtio/vsock/unix/muxer.rs`, `csm/connection.rs`): it answers
//! `OK <port of the host>`; a guest that refuses is seen as a close without an answer. The end of the host's
//! data is sent to the guest as a shutdown of both directions, and the end of the guest's data alone is not
//! passed on. It has no SEQPACKET.

use super::features::{Connects, Style};

pub(super) const STYLE: Style = Style {
    connects: Connects::ByLine,
    has_guids: false,
    half_close: false,
};
