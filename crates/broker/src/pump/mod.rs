//! Established connections between processes: those that the broker relays ([`relay`]), those whose ends
//! share a ring, which the broker only monitors ([`ring`]), arenas, in which two processes have many
//! connections ([`arena`]), those whose ends share a socket pair, which it can only close ([`direct`]), and
//! those of a process that has the socket of a guest ([`hand_over`]).
//!
//! A [`ConnectionSet`] holds [`Connection`]s on one epoll descriptor. A connection starts in the
//! core thread's own set, so that a short or quiet one needs no thread switch. A relayed
//! connection that moves many bytes is promoted to the set of a [`DataThread`]; a ring connection
//! stays. A thread owns the connections of its set, so the data path needs no locks. The core sends
//! commands to data threads and receives [`Report`]s. A set never blocks, gives every ready
//! connection a turn of bounded length (fairness), and never logs: its reports go to the core.

mod arena;
mod buffers;
mod connection;
mod direct;
mod hand_over;
#[cfg(test)]
mod handover_random_tests;
#[cfg(test)]
mod handover_testing;
#[cfg(test)]
mod handover_tests;
#[cfg(test)]
mod random_tests;
mod relay;
mod returned;
mod ring;
#[cfg(test)]
mod ring_random_tests;
#[cfg(test)]
mod ring_tests;
mod set;
mod snapshot;
mod spin;
#[cfg(test)]
mod tests;
mod thread;
mod turn;

pub(crate) use arena::ArenaNews;
pub(crate) use connection::Connection;
pub(crate) use direct::DirectEnd;
pub(crate) use relay::{RelayEnd, SEND_BUFFER};
pub(crate) use set::{Adopted, ConnectionSet, Report};
pub(crate) use snapshot::{ConnectionSetDocument, Restored};
pub(crate) use thread::DataThread;
