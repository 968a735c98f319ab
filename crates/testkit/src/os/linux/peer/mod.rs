//! The peer of the conformance cases that clients in every language run: `docs/vectors/conformance.json`.
//!
//! A client connects to the service [`SERVICE`] and sends one line, which says what the peer does with the
//! connection. `docs/vectors/README.md` lists the lines. The peer uses the library `hvsock`, so the cases also
//! check that a client works with every transport of it.

mod command;
mod outcomes;
mod serve;
mod services;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hvsock::{Endpoint, HvListener, Lease, ServiceId, VmId};

use self::outcomes::Outcomes;
use self::serve::Server;

pub use self::serve::{checksum, pattern};
pub use self::services::{CLIENT_SERVICE, CLIENT_SERVICE_ID, SERVICE, SERVICE_ID};

/// How often the peer checks whether it is to stop.
const RECHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The peer, which serves each connection on a thread. Dropping it ends its listener.
#[derive(Debug)]
pub struct ConformancePeer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _leases: Vec<Lease>,
}

impl ConformancePeer {
    /// Registers both services with the broker at `endpoint` for as long as the peer lives, and listens for
    /// every partition that may reach it.
    ///
    /// # Errors
    /// Those of the leases and of the listen.
    pub fn start(endpoint: &Endpoint) -> io::Result<Self> {
        let lease = |name: &str, id: &str| {
            let id: ServiceId = id.parse().map_err(io::Error::other)?;
            Lease::register_at(endpoint, name, id, "conformance of clients")
        };
        let leases = vec![
            lease(SERVICE, SERVICE_ID)?,
            lease(CLIENT_SERVICE, CLIENT_SERVICE_ID)?,
        ];
        let options = HvListener::options().endpoint(endpoint.clone());
        let listener = options.listen((VmId::WILDCARD, SERVICE))?;
        let stop = Arc::new(AtomicBool::new(false));
        let server = Arc::new(Server {
            endpoint: endpoint.clone(),
            outcomes: Outcomes::default(),
        });
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("conformance-peer".into())
            .spawn(move || accept(&listener, &server, &stopped))?;
        Ok(Self {
            stop,
            thread: Some(thread),
            _leases: leases,
        })
    }

    /// Waits until the listener ends, for a program that does nothing else.
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for ConformancePeer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &HvListener, server: &Arc<Server>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept_timeout(RECHECK_INTERVAL) {
            Ok((stream, peer)) => {
                let server = Arc::clone(server);
                thread::spawn(move || server.serve(&stream, peer.vm));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
            Err(_) => {}
        }
    }
}
