//! The thread that serves the control API.
//!
//! One thread with a current-thread runtime is enough: handlers call the broker's functions, which
//! block for a bounded time, on a few blocking threads. Every connection needs a permit
//! ([`ConnectionLimit`]). Timeouts bound a request's head, the whole request, and how long a
//! response may stay unread.

use std::fs;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Context;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Extension;
use hvsock_fabric::Operators;
use hvsock_sys::stream;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

use super::admission::{ConnectionLimit, Permit};
use super::attachment::{Attachment, WithAttachment};
use super::extract::Peer;
use super::gate::{Busy, Gate};
use super::limits::Limits;
use super::routes;
use super::stall::StallLimit;
use crate::callers::{Caller, Callers};
use crate::handle::Handle;
use crate::model::ProblemKind;
use crate::sandbox;
use crate::watchdog::{self, Role, Step};

/// The most clients that wait to be accepted.
const BACKLOG: u32 = 4096;

/// Delay before the next try when a client cannot be accepted.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The running control API. Dropping it stops the server.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    /// The socket, as another process can have it.
    socket: Arc<OwnedFd>,
    gate: Arc<Gate>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Serves `handle` at the socket `path` with mode 0666. The `operators` may change the
    /// broker's state; every user of the machine may read it.
    ///
    /// The caller holds the broker's lock, so an existing socket at `path` is stale and replaced.
    ///
    /// # Errors
    /// If another kind of file is at `path`, if the socket cannot be replaced, bound or made accessible,
    /// or if the thread or its runtime cannot be started.
    pub fn start(path: &Path, handle: Handle, operators: Operators) -> io::Result<Self> {
        Self::with_limits(path, handle, operators, Limits::of_process())
    }

    /// As [`start`](Self::start), with the socket that another process listened on at `path`.
    pub(crate) fn resume(
        path: &Path,
        socket: OwnedFd,
        handle: Handle,
        operators: Operators,
    ) -> io::Result<Self> {
        Self::serve(path, socket, handle, operators, Limits::of_process())
    }

    /// The listening socket.
    pub(crate) fn socket(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.socket)
    }

    /// Holds clients back.
    pub(crate) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    pub(crate) fn with_limits(
        path: &Path,
        handle: Handle,
        operators: Operators,
        limits: Limits,
    ) -> io::Result<Self> {
        let socket = stream::listen(path, 0o666, None, BACKLOG)?;
        Self::serve(path, socket, handle, operators, limits)
    }

    fn serve(
        path: &Path,
        socket: OwnedFd,
        handle: Handle,
        operators: Operators,
        limits: Limits,
    ) -> io::Result<Self> {
        let listener = StdListener::from(socket.try_clone()?);
        let gate = Arc::new(Gate::default());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            // Each follower of events blocks one thread: those of root, of the broker's user, and of
            // all others.
            .max_blocking_threads(3 * limits.followers.each + 8)
            .thread_name("hvsock-control")
            .on_thread_park(watchdog::wait)
            .on_thread_unpark(|| watchdog::begin(Step::Request))
            .build()?;
        let listener = {
            let _entered = runtime.enter();
            UnixListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel();
        let of_server = Arc::clone(&gate);
        let watch = handle.watch(Role::Helper);
        let run = move || {
            sandbox::enter(sandbox::Kind::Control);
            let _watched = watch.enter();
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, handle, operators, limits, of_server) => {}
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
            socket: Arc::new(socket),
            gate,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // First, so that a new client sees that no broker runs.
        if !self.gate.has_left() {
            let _ = fs::remove_file(&self.path);
        }
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    listener: UnixListener,
    handle: Handle,
    operators: Operators,
    limits: Limits,
    gate: Arc<Gate>,
) {
    let limit = ConnectionLimit::new(limits.connections);
    let mut callers = Callers::new();
    let router = routes::router(handle.clone(), &limits);
    let mut is_failing = false;
    loop {
        gate.wait_open().await;
        let accept = |cx: &mut Context<'_>| gate.poll_accept(|| listener.poll_accept(cx));
        let Some(accepted) = poll_fn(accept).await else {
            continue;
        };
        let (stream, busy) = match accepted {
            Ok(((stream, _), busy)) => (stream, busy),
            Err(error) => {
                // The client stays in the queue, and is served when what is short is free again.
                if !std::mem::replace(&mut is_failing, true) {
                    let text = format!("cannot accept connections to the control API: {error}");
                    handle.post(|core| core.raise(ProblemKind::ControlSocket, "", text, None));
                }
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        if std::mem::take(&mut is_failing) {
            handle.post(|core| core.clear(ProblemKind::ControlSocket, ""));
        }
        let Ok(caller) = Caller::of(&stream) else {
            continue;
        };
        let principal = callers.principal(caller, &stream);
        let peer = Peer::new(principal, caller, operators.clone());
        match limit.try_acquire(peer.uid(), peer.privileged()) {
            Some(permit) => {
                let attachment = peer.privileged().then(Attachment::default);
                let mut router = router.clone().layer(Extension(peer));
                router = router.layer(Extension(busy.clone()));
                if let Some(attachment) = attachment.clone() {
                    router = router.layer(Extension(attachment));
                }
                let stream = WithAttachment::new(stream, attachment);
                tokio::spawn(connection(stream, router, limits, permit, busy));
            }
            None => reject(&stream),
        }
    }
}

async fn connection(
    stream: WithAttachment,
    router: axum::Router,
    limits: Limits,
    permit: Permit,
    busy: Busy,
) {
    let io = TokioIo::new(StallLimit::new(stream, limits.stall));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.head_bytes)
        .serve_connection(io, TowerToHyperService::new(router))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "control connection failed");
    }
    busy.release();
    drop(permit);
}

/// Answers 503 because the connection limit is reached. Does not block.
fn reject(stream: &UnixStream) {
    let body = r#"{"error":"too many control connections are open; try again shortly"}"#;
    let response = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.try_write(response.as_bytes());
}
