//! Sessions: the connections of processes to endpoints, and to the hybrid vsock sockets of VMs, that are not
//! connections yet, or listen, or hold a lease.
//!
//! A session starts idle. Its request turns it into a listener or a lease until the process closes
//! it, or into a connection, which takes the descriptor out of the session. A process that sends
//! nothing, too much, or invalid messages costs the broker one descriptor for a bounded time.
//!
//! The descriptor is a type parameter: nothing here reads or writes one.
//!
//! - [`session`]: the state of one; [`entry`]: by which socket it came;
//! - [`table`]: all of them, with their indexes, and the queue of those that wait for a turn;
//! - [`idle`]: the deadlines and the eviction of idle ones;
//! - [`snapshot`]: all of them as a value, for another process.

mod entry;
mod idle;
mod session;
#[cfg_attr(not(test), allow(dead_code, reason = "for a live upgrade"))]
pub(super) mod snapshot;
mod table;
#[cfg(test)]
mod tests;

pub(super) use entry::{Entry, TextEntry};
pub(super) use session::{MAX_QUERIES, Request, Role, Session};
pub(super) use table::{SessionLimits, Sessions};
