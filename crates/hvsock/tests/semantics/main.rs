//! The semantics of sockets with any behaviour of the broker. Each test has one situation, with a
//! fake broker.

#![cfg(target_os = "linux")]

#[cfg(feature = "tokio")]
mod asynchronous;
mod connecting;
mod fake;
mod listening;
mod sockets;
mod streams;
