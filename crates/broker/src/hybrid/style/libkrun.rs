//! libkrun, with krunkit, vfkit and others on top: `krun_add_vsock_port2(ctx, port, "PATH_<port>", listen)` for
//! each port, before the VM starts.
//!
//! By its sources (`src/devices/src/virtio/vsock/unix.rs`): a port is either the host's, to whose socket
//! libkrun connects, or the guest's, at whose socket it listens. It accepts before the guest has, and closes if
//! the guest refuses. The end of the host's data closes the connection.

use super::features::{Connects, Style};

pub(super) const STYLE: Style = Style {
    connects: Connects::ByPath,
    has_guids: false,
    half_close: false,
};
