//! What sockets do, whatever the broker does: each test is a sentence about one situation, with
//! a broker that plays it exactly.

#![cfg(target_os = "linux")]

#[cfg(feature = "tokio")]
mod asynchronous;
mod connecting;
mod fake;
mod listening;
mod sockets;
mod streams;
