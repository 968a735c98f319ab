//! The registry, one service at a time.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use hvsock_address::ServiceRef;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use crate::api::error::ApiError;
use crate::api::extract::{Changer, JsonBody, Params, Peer, Segment};
use crate::model::{ErrorBody, NewService, Service, ServiceChange};

/// Which services to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Also those that are built into the broker and nobody has changed, and those that ship with
    /// Windows and are not registered here.
    #[serde(default)]
    all: bool,
}

/// Every registration.
#[utoipa::path(get, operation_id = "list_services", path = "/v1/services",
    tag = "services", params(ListParams),
    responses(
        (status = 200, description = "as it is now", body = Vec<Service>),
        (status = 400, description = "the request does not fit", body = ErrorBody),
        (status = 503, description = "busy; try again", body = ErrorBody),
    ))]
pub(super) async fn list(
    State(api): State<Api>,
    peer: Peer,
    Params(params): Params<ListParams>,
) -> Result<Response, ApiError> {
    api.listing(&peer, move |handle| handle.services(params.all))
        .await
}

/// Registers a service.
#[utoipa::path(post, operation_id = "register_service", path = "/v1/services",
    tag = "services", request_body = NewService,
    responses(
        (status = 201, description = "as it is now", body = Service),
        (status = 413, description = "the body is too large", body = ErrorBody),
        (status = 400, body = ErrorBody, description = "the body does not fit"),
        (status = 403, body = ErrorBody, description = "the caller may not change anything"),
        (status = 409, body = ErrorBody, description = "the GUID, name or port is taken"),
        (status = 503, description = "busy; try again", body = ErrorBody),
    ))]
pub(super) async fn register(
    State(api): State<Api>,
    Changer(peer): Changer,
    JsonBody(service): JsonBody<NewService>,
) -> Result<(StatusCode, Json<Service>), ApiError> {
    let owner = peer.user_name();
    let service = api
        .call(move |handle| handle.register(service, owner))
        .await?;
    Ok((StatusCode::CREATED, Json(service)))
}

/// One registration.
#[utoipa::path(get, operation_id = "show_service", path = "/v1/services/{service}",
    tag = "services",
    params(("service" = String, Path, description = "a friendly name, a GUID or a vsock port")),
    responses(
        (status = 200, description = "as it is now", body = Service),
        (status = 400, description = "the request does not fit", body = ErrorBody),
        (status = 404, description = "there is no such thing", body = ErrorBody),
    ))]
pub(super) async fn show(
    State(api): State<Api>,
    Segment(service): Segment<ServiceRef>,
) -> Result<Json<Service>, ApiError> {
    api.call(move |handle| handle.service(&service))
        .await
        .map(Json)
}

/// Enables or disables a service, everywhere or for one child partition.
#[utoipa::path(patch, operation_id = "change_service", path = "/v1/services/{service}",
    tag = "services",
    params(("service" = String, Path, description = "a friendly name, a GUID or a vsock port")),
    request_body = ServiceChange,
    responses(
        (status = 200, description = "as it is now", body = Service),
        (status = 413, description = "the body is too large", body = ErrorBody),
        (status = 400, description = "the request does not fit", body = ErrorBody),
        (status = 403, description = "not root or the broker's user", body = ErrorBody),
        (status = 404, description = "there is no such thing", body = ErrorBody),
    ))]
pub(super) async fn change(
    State(api): State<Api>,
    _: Changer,
    Segment(service): Segment<ServiceRef>,
    JsonBody(change): JsonBody<ServiceChange>,
) -> Result<Json<Service>, ApiError> {
    api.call(move |handle| handle.set_enabled(&service, change.enabled, change.vm.as_ref()))
        .await
        .map(Json)
}

/// Removes a registration and cuts what uses it.
#[utoipa::path(delete, operation_id = "unregister_service", path = "/v1/services/{service}",
    tag = "services",
    params(("service" = String, Path, description = "a friendly name, a GUID or a vsock port")),
    responses(
        (status = 200, body = Service, description = "as it was"),
        (status = 400, description = "the request does not fit", body = ErrorBody),
        (status = 403, description = "not root or the broker's user", body = ErrorBody),
        (status = 404, description = "there is no such thing", body = ErrorBody),
    ))]
pub(super) async fn unregister(
    State(api): State<Api>,
    _: Changer,
    Segment(service): Segment<ServiceRef>,
) -> Result<Json<Service>, ApiError> {
    api.call(move |handle| handle.unregister(&service))
        .await
        .map(Json)
}
