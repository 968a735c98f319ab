//! Connections to the broker's endpoint that never block.

mod connection;
mod own_cid;

pub use connection::OpenError;
pub(crate) use connection::{Closed, Connection, Message};
pub use own_cid::{AskError, own_cid};
