//! A byte stream each way between two processes that share memory and do not trust each other.
//!
//! Whoever connects two processes makes [`Parts`], hands each its own, and may keep a [`Monitor`]
//! to count, stop and cut. Each process opens its [`End`], which reads and writes like a socket:
//! [`End::try_read`] and [`End::try_write`] never wait, `Read` and `Write` for `&End` do,
//! [`End::try_reserve`] and [`End::try_fill`] lend the memory itself.
//!
//! ```
//! use std::io::{Read, Write};
//! use hvsock_ring::{RingSize, Stop, pair};
//!
//! # fn main() -> std::io::Result<()> {
//! let (first, second) = pair(RingSize::DEFAULT)?;
//! (&first).write_all(b"hello")?;
//! first.shutdown_write();
//! let mut text = String::new();
//! (&second).read_to_string(&mut text)?;
//! assert_eq!(text, "hello");
//! assert_eq!(second.try_read(&mut [0; 8]), Err(Stop::End));
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//!
//! Each direction is a ring of bytes with two counters that only grow, one written by each side.
//! Nothing else is written as long as both sides are awake, so streaming makes no system call. A
//! side that finds nothing to do looks for a moment, then says in a word that it sleeps, looks once
//! more, and waits for its bell in poll. The other side looks at that word after it has moved a
//! counter, and rings. The layout is in `docs/endpoint.md`, so that other languages can take part.
//!
//! # Whom it trusts
//!
//! Nobody. Either process may write anything anywhere in the memory at any time. So each side
//! keeps its own counts in memory of its own, reads the other's once, and believes them only
//! within the ring's bounds; a peer that breaks them has ended the stream ([`Violation`]) and harmed
//! nothing else. The memory's size is sealed, so that no access to it can fail. There is no
//! reference to its bytes, only copies and system calls. The bells are pipes, so neither side can
//! make a call of the other wait.

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
pub use hvsock_sys::shared_memory::SharedBytes as Bytes;
pub use lend::{Filled, Reserved};
pub use monitor::Monitor;
pub use side::Side;
pub use size::RingSize;
pub use stats::RingStats;
pub use stop::Stop;
pub use violation::Violation;
pub use wait::{Interest, Woken};
