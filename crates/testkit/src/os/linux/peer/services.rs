//! The services of the peer and of its clients.

/// The friendly name of the peer's service.
pub const SERVICE: &str = "hvsock conformance";
/// Its GUID.
pub const SERVICE_ID: &str = "c7f5b0a2-4d1e-4c3b-9a60-5d0e6b7a8c91";
/// The friendly name of the service at which a client listens for the peer's connections.
pub const CLIENT_SERVICE: &str = "hvsock conformance client";
/// Its GUID.
pub const CLIENT_SERVICE_ID: &str = "c7f5b0a2-4d1e-4c3b-9a60-5d0e6b7a8c92";
