//! Who listens, and who talks to whom.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::Api;
use crate::api::error::ApiError;
use crate::api::extract::{Changer, Peer, Segment};
use crate::handle::Handle;
use crate::model::{Connection, ErrorBody, Listener};

/// Every listener.
#[utoipa::path(get, operation_id = "list_listeners", path = "/v1/listeners", tag = "connections",
    responses(
        (status = 200, description = "as it is now", body = Vec<Listener>),
        (status = 503, description = "busy; try again", body = ErrorBody),
    ))]
pub(super) async fn listeners(State(api): State<Api>, peer: Peer) -> Result<Response, ApiError> {
    api.listing(&peer, Handle::listeners).await
}

/// Every connection.
#[utoipa::path(get, operation_id = "list_connections", path = "/v1/connections",
    tag = "connections",
    responses(
        (status = 200, description = "as it is now", body = Vec<Connection>),
        (status = 503, description = "busy; try again", body = ErrorBody),
    ))]
pub(super) async fn list(State(api): State<Api>, peer: Peer) -> Result<Response, ApiError> {
    api.listing(&peer, Handle::connections).await
}

/// One connection.
#[utoipa::path(get, operation_id = "show_connection", path = "/v1/connections/{id}",
    tag = "connections",
    params(("id" = u64, Path, description = "the connection's number")),
    responses(
        (status = 200, description = "as it is now", body = Connection),
        (status = 400, description = "the request does not fit", body = ErrorBody),
        (status = 404, description = "there is no such thing", body = ErrorBody),
    ))]
pub(super) async fn show(
    State(api): State<Api>,
    Segment(id): Segment<u64>,
) -> Result<Json<Connection>, ApiError> {
    let all = api.call(Handle::connections).await?;
    let one = all.into_iter().find(|connection| connection.id == id);
    one.map(Json).ok_or_else(|| {
        let message = format!("there is no connection {id}; `hvsock connections` lists them");
        ApiError::new(StatusCode::NOT_FOUND, message)
    })
}

/// Cuts a connection: both ends see a reset.
#[utoipa::path(delete, operation_id = "cut_connection", path = "/v1/connections/{id}",
    tag = "connections",
    params(("id" = u64, Path, description = "the connection's number")),
    responses(
        (status = 200, body = Connection, description = "as it was"),
        (status = 400, description = "the request does not fit", body = ErrorBody),
        (status = 403, description = "not root or the broker's user", body = ErrorBody),
        (status = 404, description = "there is no such thing", body = ErrorBody),
    ))]
pub(super) async fn cut(
    State(api): State<Api>,
    _: Changer,
    Segment(id): Segment<u64>,
) -> Result<Json<Connection>, ApiError> {
    api.call(move |handle| handle.cut(id)).await.map(Json)
}
