//! A guest at native speed: a virtio-vsock driver and its VMM, in the test's own process.
//!
//! There is no emulated processor and no kernel. The test is the vhost-user front end, which gives
//! memory and queues to a device ([`vmm`]), and the driver that fills the queues ([`virtqueue`]).
//! [`Driver`] sends and receives packets, and can act as a hostile guest. [`Guest`] is built on it and
//! offers what guest programs have: connections and listeners that behave like Linux's. With
//! [`Options::kernel`] the device is the kernel's, `/dev/vhost-vsock`.
//!
//! The guest also checks the device. Packets that violate the protocol are collected for
//! [`Guest::protocol_violations`]. A device that violates the virtqueue protocol makes the test panic.

pub mod call;
mod connection;
mod core;
pub mod driver;
pub mod front_end;
mod kernel;
pub mod memory;
mod options;
mod sockets;
pub mod virtqueue;
pub mod vmm;

pub use self::core::Message;
pub use connection::{BUFFER, CloseReason};
pub use driver::{Driver, Received};
pub use front_end::FrontEnd;
pub use memory::{Memory, MemoryKind, Region, Regions};
pub use options::{Layout, Options};
pub use sockets::{Guest, GuestListener, GuestStream, HOST};
