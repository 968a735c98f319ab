//! Hyper-V sockets: stream sockets between the host, its virtual machines and its containers,
//! addressed by GUID, without a network.
//!
//! A service is a GUID with a friendly name. The owner of the host registers it once. A program
//! listens for the service with [`HvListener`]; programs in other partitions (the host, its virtual
//! machines, its containers) connect to it with [`HvStream`]. Both types follow `std::net`:
//!
//! ```no_run
//! use std::io::{self, Read, Write};
//! use hvsock::{HvListener, HvStream};
//!
//! # fn service() -> io::Result<()> {
//! // On the host: accept connections from its virtual machines and containers.
//! let listener = HvListener::bind(("children", "HV Socket Demo"))?;
//! let (mut stream, _) = listener.accept()?;
//! stream.write_all(b"hello")?;
//! # Ok(())
//! # }
//! # fn user() -> io::Result<()> {
//! // In a container or virtual machine: connect to the service of the parent partition.
//! let mut stream = HvStream::connect(("parent", "HV Socket Demo"))?;
//! let mut text = String::new();
//! stream.read_to_string(&mut text)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Overview
//!
//! - [`HvStream`] and [`HvListener`]: a blocking connection and listener. [`ConnectOptions`] and
//!   [`ListenOptions`] set a timeout, a backlog, the ring size and more.
//! - `hvsock::tokio`, with the cargo feature `tokio`: the same pair for async tasks.
//! - [`HvSocket`]: the WinSock calls one to one, for ported programs.
//! - [`Lease`]: a registration that lives as long as the process.
//! - [`explain_connect`] and [`explain_listen`]: whether a call would succeed and why, without
//!   making it.
//!
//! # Cargo features
//!
//! None is on by default. Those of async code build on `tokio`; `examples/src/bin` of the repository
//! has a program for each.
//!
//! | feature | adds |
//! |---|---|
//! | `tokio` | `hvsock::tokio`: `HvStream`, `HvListener` and the halves of a stream |
//! | `stream` | `HvListener::incoming` and `into_incoming` as a `futures_core::Stream` |
//! | `axum` | `axum::serve(listener, router)`; `HvConnectInfo` for handlers |
//! | `hyper` | `HvConnector` for the clients of hyper-util |
//! | `tonic` | `HvStream` for tonic's servers with `HvConnectInfo`; `HvConnector` for its channels |
//!
//! # Errors
//!
//! Every function returns an [`std::io::Error`]. If a broker or the system refused the request,
//! [`refusal_of`] returns the [`Refusal`] in the error: the rule that denied a connect,
//! or the reason why a connection was reset.
//!
//! # Transports
//!
//! A broker process (`hvsock broker`) runs on the host. The library sends its requests to the
//! broker through a Unix socket, the [`Endpoint`]. The endpoint also identifies the partition that
//! a process belongs to. The environment variables `HVSOCK_ENDPOINT` and `HVSOCK_DIR` override its
//! default path.
//!
//! On Linux the bytes of a connection go through shared memory (zero-copy rings with a doorbell
//! for wakeups) or through a Unix socket pair. [`HvStream::transport`] returns which.
//!
//! A process that connects to a service of another process again gets an arena from the broker:
//! shared memory for up to 1024 connections of these two. It opens later connections there by
//! itself, for as long as the broker's rules permit. The broker still lists, counts, closes and
//! suspends each one. The streams of [`tokio`], and those with `raw_fd`, `describe` or
//! `shared_memory(false)`, are made one by one.
//!
//! The first arena of a process starts a thread, `hvsock-arenas`. It blocks all signals and sleeps
//! unless the broker sends a message or a connection is watched as a descriptor. A child that was
//! forked without exec has arenas of its own.
//!
//! # In a virtual machine
//!
//! A Linux guest reaches its host without a broker. If no endpoint socket exists, neither variable
//! is set, and the machine is a virtual one with `/dev/vsock`, the library uses the kernel's
//! `AF_VSOCK`. `HVSOCK_ENDPOINT=vsock` or [`Endpoint::of_vsock`] select it explicitly. The same
//! code works, with these differences of `AF_VSOCK`:
//!
//! - **Names are those of the host.** Its broker looks them up, within the time of the operation. If
//!   there is none, the error is `NoRegistry`. The vsock port of a GUID is the one of the vsock
//!   template, or else its [alias](ServiceId::vsock_alias), which the broker of the host uses as
//!   well. On Hyper-V only GUIDs of the template have a port ([`Refusal::ServiceNotMappable`]).
//! - **Partitions are the parent and loopback.** A program cannot connect to another guest or
//!   listen for it by its id. If the host permits it, a listener for any partition accepts
//!   connections from other guests; their `VmId` is [`VmId::ZERO`] and their [`Peer::partition`]
//!   is `cid N`. Loopback needs the kernel module `vsock_loopback`.
//! - **Sockets of other programs** become connections and listeners: by `TryFrom<OwnedFd>`, and from
//!   a service manager by `listen_fds` (socket activation). A connection or listener of a broker
//!   consists of several descriptors and cannot be made from one; on Windows no socket can.
//! - **A port has one listener.** A listener for the parent closes connections from other peers
//!   and counts them ([`HvListener::rejected`]).
//! - **The broker of the host is asked why it has refused a connect,** for at most 500 ms. If there
//!   is none, the error is [`Refusal::NoListener`], whatever the reason is.
//! - **A reset looks like the end of the data.** Reading returns 0 also if the peer was killed or
//!   the host closed the connection. A protocol that must distinguish these cases needs an end
//!   marker.
//! - **Some options have no effect:** `connected_suspend` (the peer on the host can set it),
//!   `container_passthru`, `high_vtl`, `shared_memory`. `ring_size` sets the kernel's buffer.
//! - **Connection and listener ids** are local to this process.
//!
//! # On Windows
//!
//! Windows itself is the broker, and sockets are its own `AF_HYPERV` sockets. The same code works,
//! with these differences:
//!
//! - **No endpoint:** naming one, in the program or in the environment, is an error.
//! - **Names** of services come from the Windows registry. Names of partitions are those of
//!   Hyper-V virtual machines (with `-` for characters that a [`PartitionName`] does not permit)
//!   and of WSL.
//! - **A [`Refusal`] is derived** from the Windows error number, the registry and the list of
//!   virtual machines: see `docs/platforms.md`. [`explain_connect`] gives the details.
//! - **Access is by security descriptors** that Windows does not expose. An explanation says that
//!   Windows decides.
//! - **A listener that could never receive a connection fails,** as on the other systems, though
//!   Windows would let it wait. A listener is not notified when its service is unregistered.
//! - **The end of a connection is as Windows reports it.** If the peer was killed, reading should
//!   fail, as with TCP there. This has not been observed yet.
//! - **There is no shared memory.**
//! - A [`Peer::partition`] is the keyword or GUID of the partition.

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod address;
mod backend;
mod child;
mod copy;
mod endpoint;
mod error;
mod explain;
mod fix;
mod lease;
mod listener;
mod lookup;
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
mod zero_copy;

/// Compiles the code blocks of the README as doc tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// Compiles the code blocks of the guide for guests as doc tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guest.md")]
struct GuestPage;

pub use address::{HvAddr, ToHvAddr, ToPartition, ToService};
pub use child::ConnectedChild;
pub use endpoint::Endpoint;
pub use error::{explanation_of, refusal_of};
pub use explain::{explain_connect, explain_listen};
pub use fix::fix_of;
pub use lease::Lease;
pub use listener::{HvListener, Incoming};
pub use options::{ConnectOptions, ListenOptions};
pub use peer::Peer;
pub use readiness::{Interest, Readiness};
pub use socket::{HvSocket, SocketOption};
pub use stream::HvStream;
pub use transport::Transport;

pub use hvsock_address::{
    AF_HYPERV, AddressError, ElementName, HV_PROTOCOL_RAW, HVSOCKET_ADDRESS_FLAG_PASSTHRU, HvUrl,
    InvalidName, ParseGuidError, ParseRefError, ParseUrlError, PartitionName, PartitionRef,
    SOCK_STREAM, ServiceId, ServiceRef, SockAddrHv, VmId,
};
pub use hvsock_fabric::{
    Action as RuleAction, Check, ContainerChange, Explanation, ExplanationStep, Fix, PartitionKind,
    Refusal, RuleRef, RuleScope, Verdict,
};
pub use os::exports::*;

/// Asserts at compile time that the public types are `Send` and `Sync`, except [`Filled`] and
/// [`Reserved`], which are lock guards.
const _: () = {
    const fn is_send_sync<T: Send + Sync>() {}

    is_send_sync::<ConnectOptions>();
    is_send_sync::<ConnectedChild>();
    is_send_sync::<Endpoint>();
    is_send_sync::<Explanation>();
    is_send_sync::<ExplanationStep>();
    is_send_sync::<HvAddr>();
    is_send_sync::<HvListener>();
    is_send_sync::<HvSocket>();
    is_send_sync::<HvStream>();
    is_send_sync::<Incoming<'_>>();
    is_send_sync::<Interest>();
    is_send_sync::<Lease>();
    is_send_sync::<ListenOptions>();
    is_send_sync::<Peer>();
    is_send_sync::<Readiness>();
    is_send_sync::<Refusal>();
    is_send_sync::<RingStats>();
    is_send_sync::<SocketOption>();
    is_send_sync::<Transport>();
    is_send_sync::<Bytes<'_>>();
    #[cfg(target_os = "linux")]
    {
        is_send_sync::<ListenFd>();
        is_send_sync::<NoBroker>();
        is_send_sync::<NoRegistry>();
        is_send_sync::<OwnedFds>();
    }
    #[cfg(feature = "tokio")]
    {
        is_send_sync::<tokio::HvListener>();
        is_send_sync::<tokio::HvStream>();
        is_send_sync::<tokio::OwnedReadHalf>();
        is_send_sync::<tokio::OwnedWriteHalf>();
        is_send_sync::<tokio::ReadHalf<'_>>();
        is_send_sync::<tokio::WriteHalf<'_>>();
        is_send_sync::<tokio::ReuniteError>();
    }
    #[cfg(any(feature = "axum", feature = "tonic"))]
    is_send_sync::<tokio::HvConnectInfo>();
    #[cfg(feature = "hyper")]
    is_send_sync::<tokio::HvConnector>();
    #[cfg(feature = "stream")]
    {
        is_send_sync::<tokio::Incoming<'_>>();
        is_send_sync::<tokio::IntoIncoming>();
    }
};
