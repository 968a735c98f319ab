//! The control API: HTTP/1.1 and JSON over a Unix socket, like the APIs of Docker, Firecracker and
//! Cloud Hypervisor.
//!
//! Operators and their tools inspect and change the broker's state only through this API. The
//! command `hvsock` uses it through [`client`]. The socket (`SO_PEERCRED`) identifies the caller,
//! never the request. Every user of the machine may read; only root and the broker's own user may
//! change. Callers are untrusted, so every wait, body, table and queue has a bound (`admission`,
//! `server`).
//!
//! [`ControlServer::start`] serves it on a thread of its own. [`openapi`] returns the OpenAPI
//! document, which is generated from the handlers.

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
