//! Integration services for Linux guests of any hypervisor and for containers: commands, files,
//! heartbeat, time, key-value pairs, shutdown, freeze and port forwarding.
//!
//! Each is an ordinary service: a GUID on the vsock template, a friendly name, an entry in the
//! host's registry with its access rules, and an open interface, described in docs/services.md.
//! Everything here uses only the public API of [`hvsock`], so the crate is also an example of how
//! to write services.
//!
//! - [`catalog`]: the list of services with their ports and names.
//! - [`copy`]: the copy protocol, shared by both ends.
//! - [`forward`]: the socket forwarding protocol, shared by both ends.
//! - `guest`: the guest side, which the program `hvsock-agent` (`agent`) runs. Feature `guest`.
//! - `host`: the host side, which the command `hvsock` and its broker use. Feature `host`.
//! - `protocol`: limits and rules that both sides keep.
//! - [`link`]: how both sides connect: gRPC, or a raw stream where throughput matters.
//! - [`wire`]: the interfaces, generated from `proto`.

#![forbid(unsafe_code)]

#[cfg(feature = "guest")]
pub mod agent;
pub mod catalog;
pub mod copy;
pub mod forward;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod getent;
#[cfg(feature = "guest")]
pub mod guest;
#[cfg(feature = "host")]
pub mod host;
pub mod link;
mod machine;
mod protocol;
mod text;
pub mod wire;

/// The public types are `Send` and `Sync`, so that programs can share them between tasks.
const _: () = {
    const fn send_and_sync<T: Send + Sync>() {}
    send_and_sync::<copy::CopyError>();
    send_and_sync::<copy::Source>();
    send_and_sync::<forward::Address>();
    send_and_sync::<forward::Fault>();
    send_and_sync::<forward::Listener>();
    send_and_sync::<forward::Socket>();
    send_and_sync::<link::CallError>();
    send_and_sync::<link::ServiceServer>();
    send_and_sync::<link::ServiceStatus>();
    send_and_sync::<link::Target>();
};

#[cfg(feature = "guest")]
const _: () = {
    const fn send_and_sync<T: Send + Sync>() {}
    send_and_sync::<guest::Config>();
};

#[cfg(feature = "host")]
const _: () = {
    const fn send_and_sync<T: Send + Sync>() {}
    send_and_sync::<host::copy::Copy>();
    send_and_sync::<host::forward::ForwardError>();
    send_and_sync::<host::forward::Forwarding>();
    send_and_sync::<host::forward::GuestListener>();
    send_and_sync::<host::forward::Tunnel>();
    send_and_sync::<host::freeze::Freezer>();
    send_and_sync::<host::heartbeat::GuestCommands>();
    send_and_sync::<host::kvp::KvpEvent>();
    send_and_sync::<host::kvp::Pools>();
    send_and_sync::<host::kvp::Watch>();
    send_and_sync::<host::notify::Notice>();
    send_and_sync::<host::session::ExecError>();
    send_and_sync::<host::session::Running>();
};
