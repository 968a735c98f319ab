//! An HTTP service with axum, without a network. `GET /` returns the caller's partition.
//!
//! ```sh
//! axum_service "Web Demo"
//! hyper_client loopback "Web Demo"
//! ```

use std::io;

use axum::extract::ConnectInfo;
use axum::routing::get;
use axum::{Json, Router};
use hvsock::Peer;
use hvsock::tokio::{HvConnectInfo, HvListener};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> io::Result<()> {
    let service = std::env::args().nth(1);
    let listener = HvListener::bind(("any", service.as_deref().unwrap_or("Web Demo"))).await?;
    println!("listening at {}", listener.local_addr()?);
    let app = Router::new()
        .route("/", get(caller))
        .into_make_service_with_connect_info::<HvConnectInfo>();
    // Without this the service would wait for ever after the broker has ended.
    let ended = listener.ended();
    let stop = async move {
        if let Some(reason) = ended.await {
            eprintln!("cannot accept connections: {reason}");
        }
    };
    axum::serve(listener, app)
        .with_graceful_shutdown(stop)
        .await
}

/// The peer of the connection, as verified by the broker.
async fn caller(ConnectInfo(connection): ConnectInfo<HvConnectInfo>) -> Json<Value> {
    Json(json!({ "partition": connection.peer().map(Peer::partition) }))
}
