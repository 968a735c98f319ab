//! The records of the audit.

use axum::extract::State;
use axum::response::Response;

use crate::api::error::ApiError;
use crate::api::extract::{JsonBody, PathParam, Peer, QueryParams};
use crate::api::json::Json;
use crate::api::responses::{Busy, Invalid, NotFound, TooLarge};
use crate::api::state::Api;
use crate::model::{AuditFilter, AuditRecord, ConnectionResult};

/// Lists records of who did what, oldest first. Root and the broker's user see all records, any other
/// user those about itself. Without a limit these are the newest 1000.
#[utoipa::path(get, operation_id = "list_audit", path = "/v1/audit", tag = "broker",
    params(AuditFilter),
    responses(
        (status = 200, description = "the records", body = Vec<AuditRecord>),
        Invalid, Busy,
    ))]
pub(super) async fn list(
    State(api): State<Api>,
    peer: Peer,
    QueryParams(filter): QueryParams<AuditFilter>,
) -> Result<Response, ApiError> {
    let scope = peer.records();
    api.listing(&peer, move |handle| {
        let records = handle.audit(scope, filter)?;
        Ok(records
            .iter()
            .map(|one| AuditRecord::clone(one))
            .collect::<Vec<_>>())
    })
    .await
}

/// States how a connection of the calling process ends or ended, for the audit, such as an exit
/// status. The record of the connection's end has it as a claim of that process, or a record after it.
#[utoipa::path(post, operation_id = "state_connection_result", path = "/v1/connections/{id}/result",
    tag = "connections",
    params(("id" = u64, Path, description = "the connection's number")),
    request_body = ConnectionResult,
    responses(
        (status = 200, description = "what is kept", body = ConnectionResult),
        TooLarge, Invalid, NotFound,
    ))]
pub(super) async fn state_result(
    State(api): State<Api>,
    peer: Peer,
    PathParam(id): PathParam<u64>,
    JsonBody(stated): JsonBody<ConnectionResult>,
) -> Result<Json<ConnectionResult>, ApiError> {
    let caller = peer.caller();
    let done = api.call(move |handle| handle.claim_result(id, caller, stated.result));
    done.await.map(|result| Json(ConnectionResult { result }))
}
