//! The control API: HTTP/1.1 and JSON on a Unix socket, as Docker, Firecracker and Cloud
//! Hypervisor have it.
//!
//! Operators and their tools see and change what the broker holds through this one door; the
//! command `hvsock` is one of them, by [`client`]. Who asks is known from the socket
//! (`SO_PEERCRED`) and never from the request: reading is open to every user of the machine,
//! changing only to the broker's own user and root. Whoever may connect is untrusted, so every
//! wait, body, table and queue here has a bound (`admission`, `server`).
//!
//! [`ControlServer::start`] runs it on a thread of its own; [`openapi`] is the document that
//! describes it, made from the same functions that answer.

mod admission;
mod body;
pub mod client;
mod error;
mod extract;
mod metrics;
#[allow(unused_qualifications, reason = "what utoipa's macros write")]
mod routes;
mod server;
mod stall;
#[cfg(test)]
mod tests;

pub use routes::openapi;
pub use server::ControlServer;
