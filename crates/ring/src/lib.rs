//! A byte stream each way between two processes that share memory and do not trust each other.
//!
//! Who connects two processes makes [`Parts`], hands each its own, and may keep a [`Monitor`].

#![deny(unsafe_code)]

mod consumer;
#[allow(unsafe_code, reason = "turns addresses into accesses")]
mod copy;
mod create;
mod end;
mod hear;
mod layout;
mod lend;
#[cfg(loom)]
mod loom_tests;
#[allow(unsafe_code, reason = "turns addresses into accesses")]
mod memory;
mod monitor;
mod producer;
mod side;
mod size;
mod spin;
mod stats;
mod stop;
mod sync;
mod violation;
mod wait;
mod waiters;

pub use create::{Bells, Parts};
pub use end::{End, pair};
pub use lend::{Bytes, Filled, Reserved};
pub use monitor::Monitor;
pub use side::Side;
pub use size::RingSize;
pub use stats::RingStats;
pub use stop::Stop;
pub use violation::Violation;
pub use wait::{Interest, Woken};
