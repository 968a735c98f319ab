//! `AF_VSOCK` and `AF_HYPERV` for unmodified programs.
//!
//! Where the kernel has neither family, or a container may not use it, a program's calls on such sockets are
//! answered by another process or by a preloaded library. What the program gets is a Unix stream socket
//! that the broker connects, so `read`, `write`, `poll`, `dup`, `fork` and the like need no help, and
//! no data passes through this crate.
//!
//! - [`model`]: what each call answers. Pure.
//! - [`agent`]: whole containers, by their runtime.
//! - [`preload`]: starts programs with the library of `hvsock-preload`.
//! - [`broker`]: the endpoint, without blocking.
//! - [`supervisor`]: answers the calls of programs under a seccomp filter.

#![cfg(target_os = "linux")]
#![forbid(unsafe_code)]

pub mod agent;
pub mod broker;
mod calls;
pub mod model;
pub mod preload;
pub mod supervisor;
