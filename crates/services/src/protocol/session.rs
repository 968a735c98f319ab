//! The limits of the session service.

/// The flow-control window: the most bytes in flight to a command's standard input.
pub const WINDOW: usize = 256 << 10;

/// The largest chunk of input or output, in bytes.
pub const CHUNK: usize = 64 << 10;
