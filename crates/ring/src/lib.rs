//! A bidirectional byte stream between two processes that share memory and do not trust each other.
//!
//! Each direction is a single-producer single-consumer ring buffer in shared memory. A third
//! process, such as a broker, creates [`Parts`] and sends each process its share; it may keep a
//! [`Monitor`] to count bytes and to suspend or reset the connection. Each process opens its
//! [`RingEnd`], which works like a socket:
//!
//! - [`RingEnd::try_read`] and [`RingEnd::try_write`] never block.
//! - `Read` and `Write` for `&RingEnd` block. [`RingEnd::wait`] also takes a deadline and a second
//!   descriptor.
//! - [`RingEnd::try_reserve`] and [`RingEnd::try_fill`] give zero-copy access to the ring's memory.
//!
//! ```
//! use std::io::{Read, Write};
//! use hvsock_ring::{RingSize, RingError, pair};
//!
//! # fn main() -> std::io::Result<()> {
//! let (first, second) = pair(RingSize::DEFAULT)?;
//! (&first).write_all(b"hello")?;
//! first.shutdown_write();
//! let mut text = String::new();
//! (&second).read_to_string(&mut text)?;
//! assert_eq!(text, "hello");
//! assert_eq!(second.try_read(&mut [0; 8]), Err(RingError::EndOfStream));
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//!
//! Each direction has two counters that only grow: `head` (bytes written) and `tail` (bytes read).
//! Each side writes one of them. While both sides are busy they write nothing else, so streaming
//! makes no system call. A side that can make no progress spins for some microseconds, stores a
//! wakeup request in shared memory, checks the counters once more, and parks in `poll` on its
//! doorbell. After moving a counter, the other side checks for a wakeup request and notifies.
//! `docs/endpoint.md` specifies the memory layout for implementations in other languages.
//!
//! # Many connections of a pair
//!
//! Two processes that open many connections share an [`arena`]: memory, doorbells and mappings are made
//! once, and each connection is a slot of it. Opening and accepting one makes no system call, and its ends
//! are [`RingEnd`]s like all others, whose threads park on futexes.
//!
//! # Trust
//!
//! The peer is hostile: either process may write any value anywhere in the memory at any time.
//!
//! - Each side keeps its own counters in private memory. It loads the peer's counter once and
//!   validates it against the ring's bounds. A [`Violation`] ends this stream and affects nothing
//!   else.
//! - The memory's size is sealed, so no access raises `SIGBUS`.
//! - No Rust reference points to the ring's bytes: there are only copies and system calls.
//! - The doorbells are pipes, so neither process can make a call of the other block.

#![deny(unsafe_code)]

pub mod arena;
mod consumer;
#[allow(unsafe_code, reason = "turns addresses into accesses")]
mod copy;
mod create;
mod end;
mod error;
#[cfg(not(loom))]
mod futex_word;
mod layout;
mod link;
#[cfg(loom)]
mod loom_doorbell;
#[cfg(loom)]
mod loom_futex;
#[cfg(loom)]
mod loom_tests;
mod memory;
mod monitor;
mod notifications;
mod pending;
mod producer;
mod side;
mod size;
pub mod snapshot;
mod spin;
mod stats;
mod sync;
mod violation;
mod wait;
mod wait_mode;
mod waiters;
mod zero_copy;

pub use arena::{
    ARENA_CLIENT_SNAPSHOT_VERSION, ARENA_MONITOR_SNAPSHOT_VERSION, Accepted, ArenaClient,
    ArenaClientSnapshot, ArenaLimits, ArenaMonitor, ArenaMonitorSnapshot, ArenaParts, ArenaServer,
    Grant, OpenError, Opened, ResetCause, SlotId, SlotView, TellBroker, Totals,
};
pub use create::{Doorbells, Parts};
pub use end::{RING_END_SNAPSHOT_VERSION, RingEnd, RingEndSnapshot, pair};
pub use error::RingError;
pub use hvsock_sys::shared_memory::SharedBytes as Bytes;
pub use monitor::Monitor;
pub use side::RingSide;
pub use size::RingSize;
pub use snapshot::{MONITOR_SNAPSHOT_VERSION, MonitorSnapshot, SnapshotError};
pub use stats::RingStats;
pub use violation::Violation;
pub use wait::{Interest, Woken};
pub use zero_copy::{Filled, Reserved};

/// Threads may share every public type. The zero-copy guards hold a lock, so they stay on their
/// thread.
const _: () = {
    const fn assert_send_sync<T: Send + Sync>() {}
    const fn assert_sync<T: Sync>() {}
    assert_send_sync::<ArenaClient>();
    assert_send_sync::<ArenaClientSnapshot>();
    assert_send_sync::<ArenaMonitor>();
    assert_send_sync::<ArenaMonitorSnapshot>();
    assert_send_sync::<ArenaServer>();
    assert_send_sync::<Doorbells>();
    assert_send_sync::<Bytes<'_>>();
    assert_send_sync::<RingEnd>();
    assert_send_sync::<Interest>();
    assert_send_sync::<Monitor>();
    assert_send_sync::<MonitorSnapshot>();
    assert_send_sync::<SnapshotError>();
    assert_send_sync::<Parts>();
    assert_send_sync::<RingSize>();
    assert_send_sync::<RingStats>();
    assert_send_sync::<RingSide>();
    assert_send_sync::<RingError>();
    assert_send_sync::<Violation>();
    assert_send_sync::<Woken>();
    assert_sync::<Filled<'_>>();
    assert_sync::<Reserved<'_>>();
};
