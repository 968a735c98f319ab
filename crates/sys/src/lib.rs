//! The boundary to the operating system: thin, safe wrappers around the system calls that hvsock uses.
//!
//! On Linux:
//!
//! - `seqpacket` and `message`: the broker's endpoint sockets, and messages with descriptors.
//!   `peer`, `accounts` and `container_user` identify the process at the other end.
//! - [`stream`]: the data sockets of connections. `shared_memory` and `doorbell`: rings between two
//!   processes, and their wakeups. `sealed`: values for another process that nobody can change.
//! - `socket_folder`: Unix sockets in a folder that an untrusted user may write to.
//! - [`poll`], `event` and `futex`: waiting with a deadline.
//! - `vsock`: the kernel's `AF_VSOCK`, in a virtual machine without a broker, and in a host whose kernel serves
//!   virtual machines. `vsock_diag` lists its sockets, `netns` enters other network namespaces.
//! - `unix_diag`: whether a Unix socket at a path can be connected to.
//! - `machine`: whether this is a virtual machine.
//! - `vhost`: the kernel's device for virtual machines, as a VMM uses it.
//! - `activation`: descriptors that a service manager passes. `service_manager`: what is said to it, and descriptors
//!   that it keeps; `notify_socket`: its side of that. [`owner`]: the owner of a file.
//! - `journal`: structured entries for systemd's journal.
//! - `session`: programs in a session of their own. `supervisor`: such programs, of which all processes
//!   can be found and ended. `inherit`: the descriptors that programs inherit. `child`: the end of a
//!   child process.
//! - `standard_streams`: standard streams that were closed at the start of the program.
//! - `identity`: what the kernel tells a peer of this process. `signals`: threads without signals.
//!   `secure_exec`: programs that ignore preloaded libraries. `bus_error`: mappings whose memory another process can take away.
//! - `init`: signals and children of the first process of a group.
//! - `foreign_socket`: Unix sockets of another program. `closed_sockets`: their end. `impersonation`: acting as another user for a moment.
//! - `seccomp`: system calls of a program that this process answers. `remote`: the memory, descriptors and
//!   state of such a program.
//! - `clock`, `freeze`, `limits`, `processor`: for the agent and the broker.
//!
//! Every descriptor that this crate creates or receives is close-on-exec. No write raises `SIGPIPE`.
//! Every call that a signal interrupts is repeated.
//!
//! On Windows there is no broker, and a connection is a socket of the system: `hyperv` creates them,
//! [`stream`] and [`poll`] do what they do on Linux. `registry`, `rights`, `named_mutex`,
//! `process`, `stdio` and `compute_systems` serve the command and the key store.
//!
//! [`sync`] is the same on all systems: locks that stay usable after a panic.
//!
//! There is one folder per operating system behind this one interface. Taking an advisory lock is not
//! here: `std::fs::File::try_lock` is `flock`. `locks` says who holds one.

#[cfg(target_os = "linux")]
mod copy;
#[cfg(target_os = "linux")]
mod linux;
pub mod sync;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
pub use linux::{
    accounts, activation, bus_error, capabilities, cgroup_freezer, child, clock, closed_sockets,
    container_mount, container_user, descriptor, doorbell, errno, event, foreign_socket, freeze,
    futex, identity, impersonation, inherit, init, journal, landlock, limits, locks, machine,
    message, netns, notify_socket, owner, peer, pidfd, poll, processor, remote, sealed, seccomp,
    secure_exec, seqpacket, service_manager, session, shared_memory, signals, socket_folder,
    splice, standard_streams, stream, supervisor, unix_diag, vhost, vsock, vsock_diag,
};
#[cfg(target_os = "linux")]
pub use linux::{set_nonblocking, take_error, try_write, write};
#[cfg(windows)]
pub use windows::{
    compute_systems, errno, hyperv, named_mutex, owner, poll, process, registry, rights,
    set_nonblocking, stdio, stream, take_error,
};

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Checked at compile time.
    #[test]
    fn public_types_are_send_and_sync() {
        fn assert<T: Send + Sync>() {}
        assert::<(accounts::Accounts, clock::ClockStatus, doorbell::Pending)>();
        assert::<(event::Event, message::Received, peer::Credentials)>();
        assert::<(message::ReceivedWithDescriptors, poll::PollFlags)>();
        assert::<(session::Session, session::Ids, session::SpawnError)>();
        assert::<(shared_memory::Mapping, shared_memory::SharedBytes<'_>)>();
        assert::<shared_memory::ReadOnlyMapping>();
    }
}
