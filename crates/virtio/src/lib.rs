//! virtio-vsock device protocol without I/O (sans-I/O): packets and time in, packets and events out.
//!
//! A guest's driver and the device exchange packets over two virtqueues: `rx` to the guest and `tx`
//! from it. (A third one is for events.) A packet is a [`Header`] of 44 bytes and, for
//! [`Operation::Data`], payload. Its ports, context ids and type identify its connection.
//!
//! - `REQUEST` requests a connection; `RESPONSE` accepts it, `RST` refuses it.
//! - `RW` contains data. Every packet of an open connection contains the sender's buffer size
//!   (`buf_alloc`) and the count of bytes that it has forwarded to its reader (`fwd_cnt`). The peer's
//!   credit is `buf_alloc - (tx_cnt - fwd_cnt)` bytes, where `tx_cnt` counts the bytes that the peer
//!   has sent; the counters wrap at 2^32. `CREDIT_UPDATE` contains the two fields and no data;
//!   `CREDIT_REQUEST` requests one.
//! - `SHUTDOWN` ends receiving, sending or both, for good. Both directions close the connection; the
//!   peer answers with `RST`.
//! - `RST` resets a connection, and answers every packet that belongs to none.
//!
//! [`Muxer`] is the protocol (section 5.10 of the virtio specification), [`queue`] the device's side of
//! a split virtqueue (section 2.7). Both can be taken out as a value and made again from it, in another
//! process: see [`snapshot`].

#![forbid(unsafe_code)]

mod cid;
mod connection;
mod credit;
mod header;
mod key;
mod muxer;
pub mod queue;
pub mod snapshot;

pub use cid::{Cid, GuestCid, InvalidCid};
pub use header::{
    HEADER_LEN, Header, MessageEnd, Operation, SocketKind, features, message, shutdown,
};
pub use key::{Handle, Key};
pub use muxer::{
    Closed, Config, ConnectError, Counters, Event, HandleSnapshot, MUXER_SNAPSHOT_VERSION, Muxer,
    MuxerSnapshot, Received, Transmit, Window,
};
pub use snapshot::SnapshotError;

#[cfg(test)]
mod tests {
    use super::*;

    /// Checked at compile time.
    #[test]
    fn public_types_are_send_and_sync() {
        fn assert<T: Send + Sync>() {}
        assert::<(Cid, GuestCid, InvalidCid, Header, Operation, SocketKind)>();
        assert::<(Muxer, Config, Counters, Handle, Key, Window)>();
        assert::<(Event, Closed, ConnectError, MessageEnd, Received, Transmit)>();
        assert::<(queue::Queue, queue::Chain, queue::Segment, queue::Layout)>();
        assert::<(queue::Next, queue::BadChain, queue::QueueFault)>();
        assert::<(
            MuxerSnapshot,
            HandleSnapshot,
            queue::QueueSnapshot,
            SnapshotError,
        )>();
    }
}
