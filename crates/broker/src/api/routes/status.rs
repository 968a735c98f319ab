//! Status and metrics of the broker.

use axum::extract::State;
use axum::response::Response;

use crate::api::body;
use crate::api::error::ApiError;
use crate::api::extract::Peer;
use crate::api::json::Json;
use crate::api::metrics;
use crate::api::responses::Busy;
use crate::api::state::{Api, blocking, response};
use crate::handle::Handle;
use crate::model::{BrokerThread, Status};

/// The broker's status.
#[utoipa::path(get, path = "/v1/status", tag = "broker",
    responses(
        (status = 200, description = "the current state", body = Status),
        Busy,
    ))]
pub(super) async fn status(State(api): State<Api>) -> Result<Json<Status>, ApiError> {
    api.call(Handle::status).await.map(Json)
}

/// The broker's threads. Works also while one of them hangs.
#[utoipa::path(get, path = "/v1/threads", tag = "broker",
    responses(
        (status = 200, description = "the threads by name", body = [BrokerThread]),
        Busy,
    ))]
pub(super) async fn threads(State(api): State<Api>) -> Json<Vec<BrokerThread>> {
    Json(api.handle.threads())
}

/// Counters for Prometheus, labelled by friendly name.
#[utoipa::path(get, path = "/metrics", tag = "broker",
    responses(
        (status = 200, description = "the counters", body = String, content_type = metrics::CONTENT_TYPE),
        Busy,
    ))]
pub(super) async fn metrics(State(api): State<Api>, peer: Peer) -> Result<Response, ApiError> {
    let permit = api.listings.acquire(&peer).await?;
    let handle = api.handle.clone();
    let text = blocking(move || handle.metrics().map(metrics::text)).await??;
    let body = body::listing(text.into_bytes(), permit);
    Ok(response(metrics::CONTENT_TYPE, body))
}
