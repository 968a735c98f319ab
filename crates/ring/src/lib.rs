//! A byte stream each way between two processes that share memory and do not trust each other.
//!
//! Who connects two processes makes [`Parts`], hands each its own, and may keep a [`Monitor`].

#![deny(unsafe_code)]
#![allow(dead_code, reason = "the ends that use it come next")]

#[allow(unsafe_code, reason = "turns addresses into accesses")]
mod copy;
mod create;
mod layout;
#[allow(unsafe_code, reason = "turns addresses into accesses")]
mod memory;
mod monitor;
mod side;
mod size;
mod sync;

pub use create::{Bells, Parts};
pub use monitor::Monitor;
pub use side::Side;
pub use size::RingSize;
