//! Hyper-V sockets: reach services in any virtual machine or container of the machine, with no
//! network.
//!
//! A service is a GUID with a friendly name, registered by whoever owns the machine. A program
//! listens for it with [`HvListener`]; programs in other partitions (the host, its virtual
//! machines, its containers) connect to it with [`HvStream`]. Both are as in `std::net`:
//!
//! ```no_run
//! use std::io::{self, Read, Write};
//! use hvsock::{HvListener, HvStream};
//!
//! # fn service() -> io::Result<()> {
//! // In the host: offer the service to its children.
//! let listener = HvListener::bind(("children", "HV Socket Demo"))?;
//! let (mut stream, _) = listener.accept()?;
//! stream.write_all(b"hello")?;
//! # Ok(())
//! # }
//! # fn user() -> io::Result<()> {
//! // In a container or virtual machine of it: use the service of the parent.
//! let mut stream = HvStream::connect(("parent", "HV Socket Demo"))?;
//! let mut text = String::new();
//! stream.read_to_string(&mut text)?;
//! # Ok(())
//! # }
//! ```
//!
//! # What there is
//!
//! - [`HvStream`] and [`HvListener`], with [`ConnectOptions`] and [`ListenOptions`] for what the
//!   defaults do not do; with the feature `tokio` also an asynchronous pair.
//! - [`HvSocket`], which mirrors the WinSock calls one to one, for programs that come from there.
//! - [`Lease`]: a registration that lives as long as the process.
//! - [`explain_connect`] and [`explain_listen`]: why it would work or not, without doing it.
//!
//! # Errors
//!
//! Every error is an [`std::io::Error`]. Where the broker decided it, [`refusal_of`] gives the
//! [`Refusal`]: which rule turned a connect down, why a connection was cut.
//!
//! # How it works
//!
//! A broker (`hvsock broker`) runs in the host. It is asked through a Unix socket, its
//! [`Endpoint`]; which partition a process is in is decided by which endpoint it has. The
//! environment variables `HVSOCK_ENDPOINT` and `HVSOCK_DIR` say where it is, where it is not in
//! the usual place.
//!
//! # In a virtual machine
//!
//! A Linux guest needs no broker to reach its host: where there is no endpoint socket, and neither
//! variable is set, sockets are the kernel's `AF_VSOCK`, if the machine has `/dev/vsock` and is a
//! virtual one. `HVSOCK_ENDPOINT=vsock` or [`Endpoint::of_vsock`] ask for that in any case. The
//! same program text does the same, with these differences, which `AF_VSOCK` makes:
//!
//! - **Services go by GUID or port.** Nobody is there to look a name up (`NoRegistry`). The vsock
//!   port of a GUID is the template's, else its [alias](ServiceId::vsock_alias), which the host's
//!   broker knows as well. On Hyper-V only GUIDs on the template have a port
//!   ([`Refusal::ServiceNotMappable`]).
//! - **Partitions are the parent and loopback.** Another guest can be neither connected to nor
//!   listened for by its id, though one that the host lets through is accepted by a listener for
//!   any partition; its `VmId` is [`VmId::ZERO`] and its [`Peer::partition`] `cid N`. Loopback
//!   needs the kernel's module `vsock_loopback`.
//! - **One listener has a port,** whomever it accepts. A listener for the parent closes what comes
//!   from elsewhere ([`HvListener::turned_away`]).
//! - **A refused connect does not say why.** It is [`Refusal::NoListener`] also where the service is
//!   not registered, disabled or not for this machine; the host's log and `hvsock why` there know.
//! - **There is one kind of end.** Reading gives 0 as well where the peer was killed or the host
//!   cut the connection; a program to which that matters ends its data with a mark of its own.
//! - **Some options have no effect:** `connected_suspend` (the host's end can set it),
//!   `container_passthru`, `high_vtl`, `shared_memory`. `ring_size` is the kernel's buffer.
//! - **Connections and listeners have numbers** that are this process's own.

//! # On Windows
//!
//! There the system itself is the broker, and sockets are its own `AF_HYPERV` ones. The same
//! program text does the same, with these differences:
//!
//! - **No endpoint is named:** one that is, in the program or the environment, is an error.
//! - **Names** of services are those of Windows' registry, names of partitions those of Hyper-V's
//!   virtual machines (with `-` for what a [`PartitionName`] does not take) and of WSL's.
//! - **A refusal is Windows' error number read backwards,** with what its registry and its virtual
//!   machines say beside: see `docs/platforms.md`. Who wants to know all of it asks
//!   [`explain_connect`].
//! - **Access is by security descriptors** that Windows does not show, so an explanation says that
//!   Windows decides.
//! - **A listener that could never receive fails,** as everywhere, though Windows would let it
//!   wait; one whose service is unregistered later is not told.
//! - **An end is what Windows makes of it.** That of a peer that was killed should be an error, as
//!   with TCP there; nobody has seen it yet.
//! - **There is no shared memory.**
//! - A peer's [`Peer::partition`] is the word or GUID of its partition.

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod address;
mod backend;
mod carry;
mod child;
mod endpoint;
mod error;
mod explain;
mod lease;
mod lend;
mod listener;
mod options;
mod os;
mod peer;
mod readiness;
mod socket;
mod stream;
#[cfg(feature = "tokio")]
pub mod tokio;
mod transport;
mod wait;

/// The README's code is compiled as a test.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// Likewise that of the page on guests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guest.md")]
struct GuestPage;

pub use address::{HvAddr, ToHvAddr, ToPartition, ToService};
pub use child::ConnectedChild;
pub use endpoint::Endpoint;
pub use error::refusal_of;
pub use explain::{Explanation, Step, explain_connect, explain_listen};
pub use lease::Lease;
pub use listener::{HvListener, Incoming};
pub use options::{ConnectOptions, ListenOptions};
pub use peer::Peer;
pub use readiness::{Interest, Readiness};
pub use socket::{HvSocket, SocketOption};
pub use stream::HvStream;
pub use transport::Transport;

pub use hvsock_address::{
    AF_HYPERV, ElementName, HV_PROTOCOL_RAW, HVSOCKET_ADDRESS_FLAG_PASSTHRU, HvUrl, PartitionName,
    PartitionRef, SOCK_STREAM, ServiceId, ServiceRef, SockAddrHv, VmId,
};
pub use hvsock_fabric::Refusal;
pub use os::exports::*;
