//! The interfaces, one module for each file in `proto`.
//!
//! The Rust code in `generated` is committed, so that building the crate does not need a protobuf
//! compiler. tests/generated.rs checks that it matches the `.proto` files, and rewrites it.

#![allow(
    missing_docs,
    unused_qualifications,
    clippy::all,
    clippy::missing_errors_doc,
    reason = "generated code, described in its .proto file"
)]

/// Commands and shells.
pub mod session {
    include!("generated/hvsock.session.v1.rs");
}

/// Heartbeat of the guest.
pub mod heartbeat {
    include!("generated/hvsock.heartbeat.v1.rs");
}

/// Files and directory trees.
pub mod copy {
    include!("generated/hvsock.copy.v1.rs");
}

/// Freezing filesystems.
pub mod freeze {
    include!("generated/hvsock.freeze.v1.rs");
}

/// TCP ports and Unix sockets, forwarded in both directions.
pub mod forward {
    include!("generated/hvsock.forward.v1.rs");
}

/// Key-value pairs.
pub mod kvp {
    include!("generated/hvsock.kvp.v1.rs");
}

/// The host's clock.
pub mod time {
    include!("generated/hvsock.time.v1.rs");
}

/// Orderly power-off and reboot.
pub mod shutdown {
    include!("generated/hvsock.shutdown.v1.rs");
}
