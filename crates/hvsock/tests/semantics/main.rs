//! The semantics of sockets with any behaviour of the broker. Each test has one situation, with a
//! fake broker.

#![cfg(target_os = "linux")]

mod accepting;
#[path = "../arena_broker/mod.rs"]
#[allow(dead_code, reason = "the conformance suite uses the rest")]
mod arena_broker;
mod arenas;
#[cfg(feature = "tokio")]
mod asynchronous;
mod connecting;
mod fake;
mod listening;
mod sockets;
mod streams;
