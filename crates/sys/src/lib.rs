//! The boundary to the operating system: thin, safe functions, one per thing that the rest of
//! hvsock asks of it.
//!
//! On Linux a broker listens with `seqpacket::listen`, takes clients with `seqpacket::accept`,
//! asks the kernel who they are with `peer` and `accounts`, and exchanges messages by `message`;
//! the bytes of a connection go through the descriptors of `stream::pair`. A client calls
//! `seqpacket::connect` and waits with [`poll`]. Two processes that have `shared_memory` wake each
//! other with a `doorbell`. In a virtual machine without a broker a client uses the kernel's
//! `vsock`. Programs for others are started in a `session` of their own. Every descriptor that this crate makes or receives is close-on-exec, no write raises
//! `SIGPIPE`, and every call that a signal interrupts is made again.
//!
//! On Windows there is no broker, and a connection is one of the system's own sockets: `hyperv`
//! makes them, and [`stream`] and [`poll`] do there what they do here. Programs that change the
//! system's `registry` take turns by `turn`, and tell a `process` that has gone; `stdio` is
//! for the command.
//!
//! One folder per operating system behind this one contract. An advisory lock needs nothing from
//! here: `std::fs::File::try_lock` is `flock`.

#[cfg(target_os = "linux")]
mod copy;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
pub use linux::{
    accounts, clock, doorbell, errno, event, freeze, limits, message, peer, poll, processor,
    seqpacket, session, shared_memory, stream, vsock,
};
#[cfg(target_os = "linux")]
pub use linux::{set_nonblocking, take_error};
#[cfg(windows)]
pub use windows::{
    compute_systems, errno, hyperv, poll, process, registry, rights, set_nonblocking, stdio,
    stream, take_error, turn,
};
