//! The interfaces, as generated from the files in `proto`, one module for each.

#![allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    reason = "generated code, described in its .proto file"
)]

/// Commands and shells.
pub mod session {
    tonic::include_proto!("hvsock.session.v1");
}

/// Signs of life.
pub mod heartbeat {
    tonic::include_proto!("hvsock.heartbeat.v1");
}

/// Files and trees.
pub mod copy {
    tonic::include_proto!("hvsock.copy.v1");
}

/// Filesystems at rest.
pub mod freeze {
    tonic::include_proto!("hvsock.freeze.v1");
}

/// TCP ports and Unix sockets across the boundary.
pub mod forward {
    tonic::include_proto!("hvsock.forward.v1");
}

/// Key-value pairs.
pub mod kvp {
    tonic::include_proto!("hvsock.kvp.v1");
}

/// The host's clock.
pub mod time {
    tonic::include_proto!("hvsock.time.v1");
}

/// Orderly power-off and reboot.
pub mod shutdown {
    tonic::include_proto!("hvsock.shutdown.v1");
}
