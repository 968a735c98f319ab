//! A guest at native speed: a virtio-vsock driver in a test's own process, and its machine.
//!
//! No processor is emulated and no kernel boots: the test is the VMM that hands memory and queues
//! to a device over vhost-user ([`vmm`]), and the driver that fills them ([`virtqueue`]).
//! [`Driver`] sends and receives packets, and everything that no lawful driver would do. [`Guest`]
//! stands on it and has what programs in a guest have: connections and listeners, which behave as
//! Linux's do.
//!
//! A device that breaks the protocol is found out: what it must not have sent is kept for
//! [`Guest::faults`], and where it breaks the queues the test panics.

mod connection;
mod core;
pub mod driver;
pub mod memory;
mod sockets;
pub mod virtqueue;
pub mod vmm;

pub use self::core::Message;
pub use connection::{BUFFER, Over};
pub use driver::{Driver, Layout, Options, Received};
pub use memory::{Memory, Region, Regions};
pub use sockets::{Guest, GuestListener, GuestStream, HOST};
