//! What the fuzz targets run of the control API.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use hvsock_fabric::Operators;
use hvsock_registry::Principal;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use super::extract::Peer;
use super::limits::Limits;
use super::routes;
use crate::Handle;
use crate::callers::Caller;

/// The longest time of one input. Readers of events never end by themselves.
const LIMIT: Duration = Duration::from_millis(200);

/// The control API of a broker, to which any bytes are sent.
#[derive(Debug)]
pub struct Control {
    router: axum::Router,
    limits: Limits,
    runtime: Runtime,
}

impl Control {
    /// The API of the broker behind `handle`.
    ///
    /// # Errors
    /// If its runtime cannot be made.
    pub fn new(handle: Handle) -> io::Result<Self> {
        let limits = Limits::default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(8)
            .build()?;
        Ok(Self {
            router: routes::router(handle, &limits),
            limits,
            runtime,
        })
    }

    /// Answers requests of the user `uid`. Returns the answers.
    pub fn answer(&self, uid: u32, bytes: &[u8]) -> Vec<u8> {
        let principal = Arc::new(Principal {
            uid,
            ..Principal::default()
        });
        let caller = Caller {
            uid,
            ..Caller::UNKNOWN
        };
        let peer = Peer::new((*principal).clone(), caller, Operators::of_broker(0));
        let router = self.router.clone().layer(Extension(peer));
        let answered = self.runtime.block_on(async {
            let (server, mut client) = UnixStream::pair()?;
            let serve = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(self.limits.head)
                .max_buf_size(self.limits.head_bytes)
                .serve_connection(TokioIo::new(server), TowerToHyperService::new(router));
            let ask = async {
                let (mut from, mut to) = client.split();
                let mut answer = Vec::new();
                let write = async {
                    let _ = to.write_all(bytes).await;
                    let _ = to.shutdown().await;
                };
                let read = from.read_to_end(&mut answer);
                let _ = tokio::join!(write, read);
                answer
            };
            let both = async { tokio::join!(serve, ask).1 };
            Ok::<_, io::Error>(tokio::time::timeout(LIMIT, both).await.unwrap_or_default())
        });
        answered.unwrap_or_default()
    }
}
