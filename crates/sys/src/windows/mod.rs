//! Windows: Hyper-V sockets with whatever else of Winsock a connection takes ([`hyperv`],
//! [`stream`], [`poll`]), and what a process asks of the system beside them: the registry's lists
//! ([`registry`]), which process is which ([`process`]), turns between processes ([`turn`]), its own
//! standard output ([`stdio`]) and the host compute service ([`compute_systems`]).
//!
//! Every socket that this layer makes is overlapped, is inherited by no child process and is
//! **non-blocking for its whole life**: who has to wait waits with [`stream::until`] or
//! [`poll::wait`] and says until when. So nothing here can block for ever, and no
//! `SO_RCVTIMEO` is needed, after which the state of a socket is documented to be indeterminate.
//!
//! What this stands on, as these machines have no Hyper-V to try it on:
//!
//! - Winsock's own catalog lists the family as "Hyper-V RAW": served by `mswsock.dll`, as TCP is,
//!   with addresses of 36 bytes, type 1, protocol 1 and the service flags 0x20026, which are
//!   TCP's but for urgent data: delivery and order guaranteed, graceful close, sockets that are
//!   handles (`netsh winsock show catalog` in moby/moby#27423 and python-trio/trio#52; the flags are
//!   `WSAPROTOCOL_INFO`'s in Microsoft's documentation). So whatever `mswsock.dll` does for TCP
//!   (`select`, modes, half-closes, `SO_LINGER`) it does for these sockets.
//! - The calls are the plain ones of Winsock. `connect` on a non-blocking `AF_HYPERV` socket, then
//!   readiness from AFD and `SO_ERROR`, is how OpenVMM's tests reach the agents in their virtual
//!   machines (microsoft/openvmm, `petri/src/vm/hyperv/mod.rs` over `pal_async`'s `PolledSocket`),
//!   so AFD, which is what `select` and mio ask, knows these sockets. Unlike `ConnectEx` (WSL and
//!   go-winio) it needs no `bind` before and no `SO_UPDATE_CONNECT_CONTEXT` after it.
//! - `shutdown`, the half-close among it: go-winio, `hvsock.go`, `CloseRead` and `CloseWrite`,
//!   with tests.
//! - `HVSOCKET_CONNECT_TIMEOUT` and `HVSOCKET_HIGH_VTL`: OpenVMM, `support/vmsocket`;
//!   `HVSOCKET_CONNECTED_SUSPEND`: WSL, `src/windows/common/hvsocket.cpp`; each one a `ULONG` at
//!   the level `HV_PROTOCOL_RAW`.
//! - `MSG_PEEK`: WSL, `src/windows/common/socket.cpp`, `Receive`.

mod compute_systems;
pub mod errno;
pub mod hyperv;
pub mod poll;
pub mod process;
pub mod registry;
pub mod rights;
mod socket;
pub mod stdio;
pub mod stream;
#[cfg(test)]
mod tcp;
pub mod turn;

pub use compute_systems::compute_systems;
pub use socket::{set_nonblocking, take_error};
