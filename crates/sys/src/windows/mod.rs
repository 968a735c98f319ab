//! Windows: Hyper-V sockets over Winsock ([`hyperv`], [`stream`], [`poll`]), and what a process needs of
//! the system beside them: reading the registry ([`registry`]) and its access lists ([`rights`]), named
//! mutexes ([`named_mutex`]), identities of processes ([`process`]), standard output ([`stdio`]) and the host
//! compute service ([`compute_systems`]).
//!
//! Every socket of this layer is overlapped, not inheritable, and **non-blocking for its whole life**. A
//! caller waits with [`stream::until`] or [`poll::wait`], with a deadline. So nothing here blocks for
//! ever, and `SO_RCVTIMEO` is not needed, after which the state of a socket is documented to be
//! indeterminate.
//!
//! The development machines have no Hyper-V. The code relies on these sources:
//!
//! - Winsock's catalog lists the family as "Hyper-V RAW": served by `mswsock.dll`, as TCP is, with
//!   addresses of 36 bytes, type 1, protocol 1 and the service flags 0x20026. These are TCP's flags
//!   except for urgent data: guaranteed delivery and order, graceful close, sockets that are handles
//!   (`netsh winsock show catalog` in moby/moby#27423 and python-trio/trio#52; the flags are
//!   `WSAPROTOCOL_INFO`'s in Microsoft's documentation). So what `mswsock.dll` does for TCP (`select`,
//!   modes, half-closes, `SO_LINGER`) it does for these sockets.
//! - The calls are the ordinary ones of Winsock. OpenVMM's tests connect to the agents in their virtual
//!   machines by `connect` on a non-blocking `AF_HYPERV` socket, readiness from AFD and `SO_ERROR`
//!   (microsoft/openvmm, `petri/src/vm/hyperv/mod.rs` over `pal_async`'s `PolledSocket`). So AFD, which
//!   `select` and mio use, supports these sockets. Unlike `ConnectEx` (WSL and go-winio) this needs no
//!   `bind` before and no `SO_UPDATE_CONNECT_CONTEXT` after it.
//! - `shutdown`, including the half-close: go-winio, `hvsock.go`, `CloseRead` and `CloseWrite`, with
//!   tests.
//! - `HVSOCKET_CONNECT_TIMEOUT` and `HVSOCKET_HIGH_VTL`: OpenVMM, `support/vmsocket`;
//!   `HVSOCKET_CONNECTED_SUSPEND`: WSL, `src/windows/common/hvsocket.cpp`. Each is a `ULONG` at the level
//!   `HV_PROTOCOL_RAW`.
//! - `MSG_PEEK`: WSL, `src/windows/common/socket.cpp`, `Receive`.

mod compute_systems;
pub mod errno;
pub mod hyperv;
pub mod named_mutex;
pub mod owner;
pub mod poll;
pub mod process;
pub mod registry;
pub mod rights;
mod socket;
pub mod stdio;
pub mod stream;
#[cfg(test)]
mod tcp;
mod winsock_call;

pub use compute_systems::compute_systems;
pub use socket::{set_nonblocking, take_error};
