//! The endpoint protocol between a process and its broker: message codecs and socket paths. No I/O.
//!
//! An endpoint is a Unix `SOCK_SEQPACKET` socket. One connection to it is one socket object: the
//! client looks names up, then connects, listens or registers. The object lives as long as the
//! file descriptor. `docs/endpoint.md` specifies the protocol.
//!
//! [`ClientMessage`] and [`BrokerMessage`] are the messages, with
//! [`encode`](ClientMessage::encode) and [`decode`](ClientMessage::decode). Decoding accepts any
//! bytes without a panic and allocates no more than the size of the message. [`Dirs`] has the paths
//! of the sockets and the configuration. [`HybridService`], [`HybridRequest`] and [`HybridReply`] are the
//! lines of hybrid vsock: of a VMM's own Unix socket, which is no endpoint, and of the broker's for a VM.
//! [`TextRequest`] and [`TextReply`] are the lines of the text protocol.
//! [`uplink`] has the frames between a virtual machine and its host's broker.

#![forbid(unsafe_code)]

mod broker;
mod client;
mod hybrid;
mod paths;
mod text;
pub mod uplink;
mod values;
mod wire;

pub use broker::{Bound, BrokerMessage, Connected, Incoming, Listening, Refused, StreamReset};
pub use client::{
    ClientMessage, Connect, ConnectNamed, Describe, IdOrName, Listen, ListenNamed, NamedAddress,
    Register,
};
pub use hybrid::{
    HybridReply, HybridReplyError, HybridReplyReader, HybridRequest, HybridRequestReader,
    HybridService, InvalidHybridRequest, MAX_HYBRID_REPLY, MAX_HYBRID_REQUEST,
};
pub use paths::{DirSource, Dirs};
pub use text::{
    InvalidTextReply, InvalidTextRequest, ListenerToken, MAX_TEXT_LINE, TextConnect, TextListen,
    TextPartition, TextReply, TextRequest, TextRequestReader,
};
pub use values::{
    ARENA_IDS, Flags, LookupKind, MAX_DESCRIPTORS, MAX_FILLER, MAX_MESSAGE, SocketOption,
    Transport, Transports, VERSION, VIOLATION,
};
pub use wire::DecodeError;

/// Threads may share every public type.
const _: () = {
    const fn assert_send_sync<T: Send + Sync>() {}
    assert_send_sync::<BrokerMessage>();
    assert_send_sync::<ClientMessage>();
    assert_send_sync::<DecodeError>();
    assert_send_sync::<Dirs>();
    assert_send_sync::<DirSource>();
    assert_send_sync::<HybridReplyReader>();
    assert_send_sync::<HybridService>();
    assert_send_sync::<SocketOption>();
    assert_send_sync::<Transports>();
};
