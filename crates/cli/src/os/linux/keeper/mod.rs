//! `hvsock keeper`: what systemd does for a service, on a machine without it. It starts a program again that has died,
//! and keeps descriptors for it meanwhile.
//!
//! [`service`] decides, without I/O; [`run`] has the processes, signals and the socket.

mod run;
mod service;

pub use run::{START_COMMAND, keep, start};
