//! Listeners and connections.

use axum::extract::State;
use axum::response::Response;

use crate::api::error::ApiError;
use crate::api::extract::{PathParam, Peer, PrivilegedPeer};
use crate::api::json::Json;
use crate::api::responses::{Busy, Forbidden, Invalid, NotFound};
use crate::api::state::Api;
use crate::handle::{ControlError, Handle};
use crate::model::{Connection, Listener};

/// Lists listeners.
#[utoipa::path(get, operation_id = "list_listeners", path = "/v1/listeners", tag = "connections",
    responses(
        (status = 200, description = "the current state", body = Vec<Listener>),
        Busy,
    ))]
pub(super) async fn listeners(State(api): State<Api>, peer: Peer) -> Result<Response, ApiError> {
    api.listing(&peer, Handle::listeners).await
}

/// Lists connections.
#[utoipa::path(get, operation_id = "list_connections", path = "/v1/connections",
    tag = "connections",
    responses(
        (status = 200, description = "the current state", body = Vec<Connection>),
        Busy,
    ))]
pub(super) async fn list(State(api): State<Api>, peer: Peer) -> Result<Response, ApiError> {
    api.listing(&peer, Handle::connections).await
}

/// One connection.
#[utoipa::path(get, operation_id = "show_connection", path = "/v1/connections/{id}",
    tag = "connections",
    params(("id" = u64, Path, description = "the connection's number")),
    responses(
        (status = 200, description = "the current state", body = Connection),
        Invalid, NotFound,
    ))]
pub(super) async fn show(
    State(api): State<Api>,
    PathParam(id): PathParam<u64>,
) -> Result<Json<Connection>, ApiError> {
    let all = api.call(Handle::connections).await?;
    let one = all.into_iter().find(|connection| connection.id == id);
    one.map(Json)
        .ok_or_else(|| ControlError::unknown_connection(id).into())
}

/// Closes a connection. Both ends see a reset.
#[utoipa::path(delete, operation_id = "close_connection", path = "/v1/connections/{id}",
    tag = "connections",
    params(("id" = u64, Path, description = "the connection's number")),
    responses(
        (status = 200, body = Connection, description = "the state before"),
        Invalid, Forbidden, NotFound,
    ))]
pub(super) async fn close(
    State(api): State<Api>,
    _: PrivilegedPeer,
    PathParam(id): PathParam<u64>,
) -> Result<Json<Connection>, ApiError> {
    api.call(move |handle| handle.close_connection(id))
        .await
        .map(Json)
}
