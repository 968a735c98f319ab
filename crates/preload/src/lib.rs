//! A library for `LD_PRELOAD` that gives unmodified programs `AF_VSOCK` and `AF_HYPERV` through the broker.
//!
//! `hvsock run --preload PROGRAM` uses it, and `hvsock run` where the system does not let a supervisor watch system
//! calls. It takes the place of the C library's functions for sockets. A socket of any other family
//! goes to the C library untouched.
//!
//! - [`abi`] has the C functions, and all unsafe code of this crate.
//! - [`calls`] answers them, by the decisions of `hvsock-interpose`'s model.
//! - [`table`] knows the sockets again after `dup`, `fork` and `exec`.
//! - [`claim`] keeps the addresses that are bound.
//! - [`endpoint`] speaks with the broker, within the program's call and without threads.
//! - [`replace`] makes a listener of the program's descriptors.
//! - [`device`] stands in for `/dev/vsock`.
//!
//! A connecting socket is the same open file for its whole life, which is connected to one of the broker's. A
//! listener is the connection to the broker itself. So `read`, `write`, `poll` and `epoll` are the
//! kernel's, and no data passes through here.
//!
//! No function holds a lock while it waits, starts a thread, or needs one.

#![cfg(target_os = "linux")]
#![cfg_attr(test, allow(dead_code, reason = "only programs call the C functions"))]

mod abi;
mod calls;
mod claim;
mod connect;
mod device;
mod endpoint;
mod name;
mod notice;
mod partition;
mod record;
mod registration;
mod replace;
mod socket;
mod state;
mod table;
