//! The whole registry at once, to take to another machine.

use axum::Json;
use axum::extract::State;
use axum::response::Response;

use super::{Api, blocking};
use crate::api::error::ApiError;
use crate::api::extract::{Changer, Peer, RawBody};
use crate::convert;
use crate::model::{ErrorBody, NewService, Service};

/// All registrations but leases.
#[utoipa::path(get, operation_id = "export_registry", path = "/v1/registry",
    tag = "services",
    responses(
        (status = 200, description = "the file", body = Vec<NewService>),
        (status = 503, description = "busy; try again", body = ErrorBody),
    ))]
pub(super) async fn export(State(api): State<Api>, peer: Peer) -> Result<Response, ApiError> {
    let list = api.listing(&peer, |handle| {
        let all = handle.export().into_iter();
        Ok(all.map(convert::new_service).collect::<Vec<_>>())
    });
    list.await
}

/// Registers every service of a file, or none if one of them cannot be.
#[utoipa::path(post, operation_id = "import_registry", path = "/v1/registry",
    tag = "services",
    request_body = Vec<NewService>,
    responses(
        (status = 200, description = "as it is now", body = Vec<Service>),
        (status = 400, description = "the request does not fit", body = ErrorBody),
        (status = 403, description = "not root or the broker's user", body = ErrorBody),
        (status = 409, body = ErrorBody, description = "a GUID, name or port is taken"),
        (status = 413, description = "the body is too large", body = ErrorBody),
    ))]
pub(super) async fn import(
    State(api): State<Api>,
    Changer(peer): Changer,
    RawBody(file): RawBody,
) -> Result<Json<Vec<Service>>, ApiError> {
    let owner = peer.user_name();
    let handle = api.handle.clone();
    let import = move || {
        let registrations = from_json(&file, &owner)?;
        handle.import(registrations).map_err(ApiError::from)
    };
    blocking(import).await?.map(Json)
}

fn from_json(file: &[u8], owner: &str) -> Result<Vec<hvsock_registry::Registration>, ApiError> {
    let list: Vec<NewService> = serde_json::from_slice(file)
        .map_err(|error| ApiError::bad_request(format!("the file does not fit: {error}")))?;
    let registrations = list
        .into_iter()
        .map(|new| convert::registration(new, Some(owner.to_owned())));
    registrations
        .collect::<Result<_, _>>()
        .map_err(ApiError::bad_request)
}
