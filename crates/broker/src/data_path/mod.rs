//! What every data path of an established connection has: the control connection of a process
//! ([`ControlConnection`]) with its socket, byte counters ([`ByteCounters`]), a queue of reports to the core
//! ([`ReportSender`]), and the refusals that end a connection.
//!
//! There are two kinds of data path. [`pump`](crate::pump) relays or monitors connections between
//! processes, the [links](crate::guest_link) move the bytes of connections with guests. Neither knows
//! the other.

mod control;
mod counters;
mod process_socket;
mod report;

pub use control::ControlConnection;
pub(crate) use control::snapshot::ControlSnapshot;
pub(crate) use control::{peer_died, protocol_violation, unread_data};
pub(crate) use counters::ByteCounters;
pub(crate) use counters::snapshot::CountersSnapshot;
pub(crate) use process_socket::snapshot::{Charging, UnreadSocketsSnapshot, is_false};
pub(crate) use process_socket::{ProcessSocket, UnreadSockets, WeakProcessSocket};
pub use report::ReportSender;
