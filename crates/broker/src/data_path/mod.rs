//! What every data path of an established connection has: the control connection of a process
//! ([`ControlConnection`]), byte counters ([`ByteCounters`]), a queue of reports to the core
//! ([`ReportSender`]), and the refusals that end a connection.
//!
//! There are two data paths. [`pump`](crate::pump) relays or monitors connections between processes,
//! [`vhost_user`](crate::vhost_user) moves the bytes of connections with guests. Neither knows the
//! other.

mod control;
mod counters;
mod report;

pub(crate) use control::{ControlConnection, peer_died, protocol_violation, unread_data};
pub(crate) use counters::ByteCounters;
pub(crate) use report::ReportSender;
