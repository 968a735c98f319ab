//! The back-end of Windows.
//!
//! - [`resolve`]: addresses as Windows takes them;
//! - [`facts`]: what this machine reports about itself;
//! - [`refusal`]: errors of Windows as refusals;
//! - [`pending_connect`]: a connect;
//! - [`listener`] and [`stream`]: a listener and a connection;
//! - [`lease`]: a registration that lives as long as the process.

mod facts;
mod lease;
mod listener;
mod pending_connect;
mod refusal;
mod resolve;
mod stream;

use std::io;
use std::os::windows::io::OwnedSocket;
use std::time::{Duration, Instant};

use hvsock_sys::hyperv::{self, HvOption};

pub(crate) use lease::Lease;
pub(crate) use listener::Listener;
pub(crate) use pending_connect::PendingConnect;
pub(crate) use resolve::{service_id, vm_id};
pub(crate) use stream::Stream;

use crate::backend::{Outcome, Request, RequestKind, Settings};
use crate::endpoint::UseVsock;
use crate::{Endpoint, error};
use resolve::Target;

/// Windows has no `AF_VSOCK`.
pub(crate) fn uses_vsock(_endpoint: &Endpoint) -> bool {
    false
}

/// An endpoint socket means a broker. The request must not reach anything else.
fn require_no_endpoint(endpoint: &Endpoint) -> io::Result<()> {
    let text = match endpoint.vsock() {
        UseVsock::WithoutBroker => return Ok(()),
        UseVsock::Always => "Windows has no AF_VSOCK; its Hyper-V sockets need no endpoint",
        UseVsock::Never => {
            "Windows has no endpoint sockets, since the system itself is the broker; name no \
             endpoint, and unset HVSOCK_ENDPOINT and HVSOCK_DIR"
        }
    };
    Err(error::new(io::ErrorKind::Unsupported, text))
}

/// Connects, listens or explains. Waits up to `timeout`.
pub(crate) fn execute(
    endpoint: &Endpoint,
    request: Request,
    timeout: Duration,
) -> io::Result<Outcome> {
    let deadline = Instant::now() + timeout;
    require_no_endpoint(endpoint)?;
    match request.kind {
        RequestKind::Connect { .. } if request.flags.dry_run => {
            let target = Target::of_connect(&request.address)?;
            let explanation = facts::explain_connect(target.address());
            Ok(Outcome::Explained(explanation))
        }
        RequestKind::Connect { .. } => {
            let stream = PendingConnect::start(endpoint, request)?.finish(deadline)?;
            Ok(Outcome::Connected(stream))
        }
        RequestKind::Listen { .. } if request.flags.dry_run => {
            let target = Target::of_listen(&request.address)?;
            let explanation = facts::explain_listen(target.address());
            Ok(Outcome::Explained(explanation))
        }
        RequestKind::Listen { backlog } => {
            let target = Target::of_listen(&request.address)?;
            // Windows permits a bind that can never receive a connection, and does not report it.
            if let Some(refusal) = facts::listen_refusal(target.address()) {
                return Err(refusal.into());
            }
            let listener = Listener::new(&target, backlog, &request)?;
            Ok(Outcome::Listening(listener))
        }
    }
}

/// Creates a socket with the options that apply from its creation.
fn socket(settings: Settings) -> io::Result<OwnedSocket> {
    let socket = hyperv::socket().map_err(refusal::of_socket)?;
    let options = [
        (HvOption::ContainerPassthru, settings.container_passthru),
        (HvOption::ConnectedSuspend, settings.connected_suspend),
        (HvOption::HighVtl, settings.high_vtl),
    ];
    // An older Windows does not support all options. That matters only if one is requested.
    for (option, _) in options.into_iter().filter(|(_, on)| *on) {
        hyperv::set_option(&socket, option, 1)
            .map_err(|error| refusal::of_option(option, error))?;
    }
    Ok(socket)
}
