//! Connections that share what a pair of processes needs for them: one arena of shared memory, one
//! control connection and one doorbell for each process.
//!
//! The broker grants an arena to a process that connects to a listener again. From then on the process
//! opens connections in it without the broker, and the listener's process accepts them from the arena's
//! connect queue. A connection has no descriptor of its own.
//!
//! - [`end`]: one process's end of an arena; [`control`]: the broker's messages about it;
//! - [`slot`]: what belongs to one connection: its messages, and a descriptor if somebody asks for one;
//! - [`key`] and [`pool`]: the arenas in which this process connects;
//! - [`accepting`]: the arenas from which a listener accepts;
//! - [`watcher`]: the thread that receives messages and notifications while nobody waits for them;
//! - [`per_process`]: what a child process that was forked must not share with its parent.

mod accepting;
mod control;
mod end;
mod key;
mod per_process;
mod pool;
mod slot;
mod watcher;

pub(super) use accepting::{AcceptingArenas, Parked};
pub(super) use end::Arena;
pub(super) use pool::{Attempt, Granted, Offer, attempt};
pub(super) use slot::{SlotControl, SlotReadiness};
