//! The thread that serves the control API.
//!
//! One thread with a current-thread runtime is enough: the work is done by the broker, whose
//! functions block for a bounded time and so run on a few blocking threads. Every connection has
//! a place by its user ([`Admission`]), a limit for sending its request's head, one for the whole
//! request, and one for how long it may leave an answer unread.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Extension;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

use super::admission::{Admission, Place, Places};
use super::extract::Peer;
use super::routes;
use super::stall::StallLimit;
use crate::callers::{Caller, Callers};
use crate::handle::Handle;

/// The limits of the control API. Tests make them smaller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub places: Places,
    /// From the first byte of a request, or from the last one's answer, to the end of its head.
    pub head: Duration,
    /// From the end of the head to the start of the answer.
    pub request: Duration,
    /// The same for an import, which writes a file for each service.
    pub import: Duration,
    /// How long an answer may stand unread.
    pub stall: Duration,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Bytes of an import: 100,000 registrations as `.reg` have about 25 MiB.
    pub import_bytes: usize,
    /// Long listings in the making or on the way, for the privileged and for all others each.
    pub listings: usize,
    /// Readers of events, for the privileged and for all others each.
    pub followers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            places: Places::default(),
            head: Duration::from_secs(10),
            request: Duration::from_secs(15),
            import: Duration::from_secs(1800),
            stall: Duration::from_secs(20),
            head_bytes: 16 * 1024,
            body_bytes: 64 * 1024,
            import_bytes: 64 * 1024 * 1024,
            listings: 4,
            followers: 16,
        }
    }
}

/// The running control API; ends when dropped.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Serves `handle` at the socket `path`, which every user of the machine may then open.
    ///
    /// The caller holds the broker's lock, so a socket that is already there has nobody behind it
    /// and is replaced. `broker_uid` and root may change things.
    pub fn start(path: &Path, handle: Handle, broker_uid: u32) -> io::Result<Self> {
        Self::with_limits(path, handle, broker_uid, Limits::default())
    }

    pub(crate) fn with_limits(
        path: &Path,
        handle: Handle,
        broker_uid: u32,
        limits: Limits,
    ) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = StdListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o666))?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            // Each follower of events has one to itself.
            .max_blocking_threads(2 * limits.followers + 8)
            .thread_name("hvsock-control")
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, handle, broker_uid, limits) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_timeout(Duration::from_secs(1));
        };
        let thread = thread::Builder::new()
            .name("hvsock-control".into())
            .spawn(run)?;
        Ok(Self {
            path: path.to_owned(),
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // Gone first: whoever looks for it now learns that no broker runs.
        let _ = fs::remove_file(&self.path);
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: StdListener, handle: Handle, broker_uid: u32, limits: Limits) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the control API cannot be served");
            return;
        }
    };
    let admission = Admission::new(limits.places);
    let mut callers = Callers::new();
    let router = routes::router(handle, &limits);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others may come free.
                tracing::warn!(%error, "a control connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(caller) = Caller::of(&stream) else {
            continue;
        };
        let peer = Peer::new(callers.principal(caller, &stream), broker_uid);
        match admission.admit(peer.uid(), peer.privileged()) {
            Some(place) => {
                let router = router.clone().layer(Extension(peer));
                tokio::spawn(connection(stream, router, limits, place));
            }
            None => turn_away(&stream),
        }
    }
}

async fn connection(stream: UnixStream, router: axum::Router, limits: Limits, place: Place) {
    let io = TokioIo::new(StallLimit::new(stream, limits.stall));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.head_bytes)
        .serve_connection(io, TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a control connection ended early");
    }
    drop(place);
}

/// Says that there is no place left, without waiting for anything.
fn turn_away(stream: &UnixStream) {
    let body = r#"{"error":"too many control connections are open; try again shortly"}"#;
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.try_write(answer.as_bytes());
}
