//! An arena: shared memory from which one process opens connections to another one by itself.
//!
//! A *pair* is a connecting process, the client, and a listener's process, the server. A third process, the
//! broker, creates the arena ([`ArenaParts`]) and hands out both ends. From then on the client opens
//! connections ([`ArenaClient::connect`]) and the server accepts them ([`ArenaServer::accept`]) without the
//! broker and, while nobody waits, without a system call. The broker reads what the pair claims about its
//! connections, grants and revokes, closes and suspends ([`ArenaMonitor`]).

mod changes;
mod client;
mod client_slots;
mod create;
mod grant;
mod layout;
#[cfg(loom)]
mod loom_tests;
mod monitor;
mod process;
mod queue;
mod ready;
mod reset;
mod server;
mod slot;
mod slot_id;
mod table;
mod wakeups;
mod words;

pub use client::{ArenaClient, OpenError, Opened};
pub use create::ArenaParts;
pub use grant::Grant;
pub use layout::ArenaLimits;
pub use monitor::{ArenaMonitor, SlotView, Totals};
pub use process::TellBroker;
pub use reset::ResetCause;
pub use server::{Accepted, ArenaServer};
pub use slot_id::SlotId;

pub(crate) use crate::Violation;

pub(crate) use slot::{Finished, SlotLink};
pub(crate) use words::{ArenaWords, GrantWords};
