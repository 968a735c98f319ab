//! The half on the host: what the command and the broker call and offer.

pub mod copy;
pub mod heartbeat;
pub mod session;
