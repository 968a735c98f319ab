//! virtio-vsock without I/O: what a device does about each packet, decided with nothing but the
//! packet, the time and its own state.
//!
//! A guest's driver and a device exchange packets over two virtqueues: `rx` to the guest and `tx`
//! from it (a third carries events). A packet is a [`Header`] of 44 bytes and, for
//! [`Operation::Data`], bytes. It belongs to the connection that its ports and context ids name:
//!
//! - `REQUEST` asks for a connection; `RESPONSE` grants it, `RST` refuses it.
//! - `RW` carries data. Each side says in every packet how much it can hold (`buf_alloc`) and how
//!   much it has passed on so far (`fwd_cnt`), so the other knows how much it may send:
//!   `buf_alloc - (sent - fwd_cnt)`, counted in bytes of data modulo 2^32. `CREDIT_UPDATE` says it
//!   without data, `CREDIT_REQUEST` asks for it to be said.
//! - `SHUTDOWN` says, for good, that its sender receives no more, sends no more, or both. Both is
//!   how a connection is closed, to which `RST` is the answer.
//! - `RST` ends a connection without more ado, and answers every packet that belongs to none.
//!
//! The protocol is section 5.10 of the virtio specification, the virtqueues are section 2.7.

#![forbid(unsafe_code)]

mod cid;
mod connection;
mod credit;
mod header;
mod muxer;
pub mod queue;

pub use cid::{Cid, GuestCid, InvalidCid};
pub use header::{HEADER_LEN, Header, Operation, SocketKind, features, message, shutdown};
pub use muxer::{
    Closed, Config, ConnectError, Counters, Event, Handle, Key, MessageEnd, Muxer, Received,
    Transmit, Window,
};
