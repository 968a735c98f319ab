//! Registrations of single services.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use hvsock_address::{PartitionRef, ServiceRef};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::error::ApiError;
use crate::api::extract::{JsonBody, PathParam, Peer, PrivilegedPeer, QueryParams};
use crate::api::json::Json;
use crate::api::responses::{Busy, Forbidden, Invalid, NotFound, TooLarge};
use crate::api::state::Api;
use crate::model::{
    AccessChange, AccessChanged, ErrorBody, NewService, Service, ServiceChange, TransportChange,
};

/// Which services to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Also lists unchanged built-in services, and services that ship with Windows and are not
    /// registered here.
    #[serde(default)]
    all: bool,
}

/// Lists registrations.
#[utoipa::path(get, operation_id = "list_services", path = "/v1/services",
    tag = "services", params(ListParams),
    responses(
        (status = 200, description = "the current state", body = Vec<Service>),
        Invalid, Busy,
    ))]
pub(super) async fn list(
    State(api): State<Api>,
    peer: Peer,
    QueryParams(params): QueryParams<ListParams>,
) -> Result<Response, ApiError> {
    api.listing(&peer, move |handle| handle.services(params.all))
        .await
}

/// Registers a service.
#[utoipa::path(post, operation_id = "register_service", path = "/v1/services",
    tag = "services", request_body = NewService,
    responses(
        (status = 201, description = "the new registration", body = Service),
        TooLarge,
        (status = 400, body = ErrorBody, description = "invalid body"),
        Forbidden,
        (status = 409, body = ErrorBody, description = "the GUID, name or port is taken"),
        Busy,
    ))]
pub(super) async fn register(
    State(api): State<Api>,
    PrivilegedPeer(peer): PrivilegedPeer,
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
        (status = 200, description = "the current state", body = Service),
        Invalid, NotFound,
    ))]
pub(super) async fn show(
    State(api): State<Api>,
    PathParam(service): PathParam<ServiceRef>,
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
        (status = 200, description = "the current state", body = Service),
        TooLarge, Invalid, Forbidden, NotFound,
        (status = 409, body = ErrorBody, description = "disabled for all partitions, and one is to \
            follow that: `exception` enables it"),
    ))]
pub(super) async fn change(
    State(api): State<Api>,
    _: PrivilegedPeer,
    PathParam(service): PathParam<ServiceRef>,
    JsonBody(change): JsonBody<ServiceChange>,
) -> Result<Json<Service>, ApiError> {
    api.call(move |handle| handle.change_service(&service, &change))
        .await
        .map(Json)
}

/// Allows or denies users, groups and partitions to connect to a service, or to listen for it.
/// Established connections stay.
#[utoipa::path(post, operation_id = "change_access", path = "/v1/services/{service}/access",
    tag = "services",
    params(("service" = String, Path, description = "a friendly name, a GUID or a vsock port")),
    request_body = AccessChange,
    responses(
        (status = 200, description = "what became of each entry", body = AccessChanged),
        TooLarge, Invalid, Forbidden, NotFound,
    ))]
pub(super) async fn change_access(
    State(api): State<Api>,
    _: PrivilegedPeer,
    PathParam(service): PathParam<ServiceRef>,
    JsonBody(change): JsonBody<AccessChange>,
) -> Result<Json<AccessChanged>, ApiError> {
    api.call(move |handle| handle.change_access(&service, &change))
        .await
        .map(Json)
}

/// Which access rules to remove.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ResetParams {
    /// Only those of this child partition.
    #[serde(default)]
    #[param(value_type = Option<String>)]
    vm: Option<PartitionRef>,
}

/// Removes the access rules of a service and of all its child partitions, or of one, so that the
/// built-in rules or the defaults apply again. Whether it is enabled does not change.
#[utoipa::path(delete, operation_id = "reset_access", path = "/v1/services/{service}/access",
    tag = "services",
    params(
        ("service" = String, Path, description = "a friendly name, a GUID or a vsock port"),
        ResetParams,
    ),
    responses(
        (status = 200, description = "the current state", body = Service),
        Invalid, Forbidden, NotFound,
    ))]
pub(super) async fn reset_access(
    State(api): State<Api>,
    _: PrivilegedPeer,
    PathParam(service): PathParam<ServiceRef>,
    QueryParams(params): QueryParams<ResetParams>,
) -> Result<Json<Service>, ApiError> {
    api.call(move |handle| handle.reset_access(&service, params.vm.as_ref()))
        .await
        .map(Json)
}

/// Sets how the bytes of a service's new connections travel, for all partitions or for one child
/// partition. Established connections stay as they are.
#[utoipa::path(put, operation_id = "set_transport", path = "/v1/services/{service}/transport",
    tag = "services",
    params(("service" = String, Path, description = "a friendly name, a GUID or a vsock port")),
    request_body = TransportChange,
    responses(
        (status = 200, description = "the current state", body = Service),
        TooLarge, Invalid, Forbidden, NotFound,
    ))]
pub(super) async fn set_transport(
    State(api): State<Api>,
    _: PrivilegedPeer,
    PathParam(service): PathParam<ServiceRef>,
    JsonBody(change): JsonBody<TransportChange>,
) -> Result<Json<Service>, ApiError> {
    api.call(move |handle| handle.set_transport(&service, &change))
        .await
        .map(Json)
}

/// Removes a registration and closes the listeners and connections that use it.
#[utoipa::path(delete, operation_id = "unregister_service", path = "/v1/services/{service}",
    tag = "services",
    params(("service" = String, Path, description = "a friendly name, a GUID or a vsock port")),
    responses(
        (status = 200, body = Service, description = "the state before"),
        Invalid, Forbidden, NotFound,
    ))]
pub(super) async fn unregister(
    State(api): State<Api>,
    _: PrivilegedPeer,
    PathParam(service): PathParam<ServiceRef>,
) -> Result<Json<Service>, ApiError> {
    api.call(move |handle| handle.unregister(&service))
        .await
        .map(Json)
}
