//! An HTTP service with axum, without a network. `GET /` returns the caller's partition.
//!
//! ```sh
//! axum_service "Web Demo"
//! (printf 'GET / HTTP/1.0\r\n\r\n'; sleep 1) | hvsock connect loopback "Web Demo"
//! ```

use std::io;

use axum::extract::ConnectInfo;
use axum::extract::connect_info::Connected;
use axum::routing::get;
use axum::serve::{IncomingStream, Listener};
use axum::{Json, Router};
use hvsock::tokio::{HvListener, HvStream};
use hvsock::{Peer, SockAddrHv};
use serde_json::{Value, json};

/// Adapts a listener of hvsock to axum.
struct Service(HvListener);

impl Listener for Service {
    type Io = HvStream;
    type Addr = SockAddrHv;

    async fn accept(&mut self) -> (HvStream, SockAddrHv) {
        self.0.accept().await.unwrap_or_else(|error| {
            // `accept` fails only if the listener cannot be used any more, for example because the
            // broker ended.
            eprintln!("cannot accept connections: {error}");
            std::process::exit(1)
        })
    }

    fn local_addr(&self) -> io::Result<SockAddrHv> {
        self.0.local_addr()
    }
}

/// What axum passes to the handlers of a connection: its peer, as verified by the broker.
#[derive(Clone)]
struct Caller(Option<Peer>);

impl Connected<IncomingStream<'_, Service>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Service>) -> Self {
        Self(stream.io().peer().cloned())
    }
}

#[tokio::main]
async fn main() -> io::Result<()> {
    let service = std::env::args().nth(1);
    let listener = HvListener::bind(("any", service.as_deref().unwrap_or("Web Demo"))).await?;
    println!("listening at {}", listener.local_addr()?);
    let app = Router::new()
        .route("/", get(caller))
        .into_make_service_with_connect_info::<Caller>();
    axum::serve(Service(listener), app).await
}

async fn caller(ConnectInfo(Caller(peer)): ConnectInfo<Caller>) -> Json<Value> {
    Json(json!({ "partition": peer.as_ref().map(Peer::partition) }))
}
