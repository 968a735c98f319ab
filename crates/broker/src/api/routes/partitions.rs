//! The broker's own partition and its children.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use hvsock_address::PartitionRef;

use crate::api::error::ApiError;
use crate::api::extract::{JsonBody, PathParam, Peer, PrivilegedPeer};
use crate::api::json::Json;
use crate::api::responses::{Busy, Forbidden, Invalid, NotFound, TooLarge};
use crate::api::state::Api;
use crate::handle::Handle;
use crate::model::{ErrorBody, NewContainer, NewGuestCommand, NewVm, Partition, PartitionChange};

/// Lists partitions, parents before their children.
#[utoipa::path(get, operation_id = "list_partitions", path = "/v1/partitions", tag = "partitions",
    responses(
        (status = 200, description = "the current state", body = Vec<Partition>),
        Busy,
    ))]
pub(super) async fn list(State(api): State<Api>, peer: Peer) -> Result<Response, ApiError> {
    api.listing(&peer, Handle::partitions).await
}

/// Adds a container and creates its endpoint.
#[utoipa::path(post, operation_id = "add_container", path = "/v1/partitions",
    tag = "partitions", request_body = NewContainer,
    responses(
        (status = 201, description = "the new partition", body = Partition),
        TooLarge, Invalid, Forbidden,
        (status = 409, body = ErrorBody, description = "the name or id is taken"),
    ))]
pub(super) async fn add(
    State(api): State<Api>,
    _: PrivilegedPeer,
    JsonBody(container): JsonBody<NewContainer>,
) -> Result<(StatusCode, Json<Partition>), ApiError> {
    let partition = api
        .call(move |handle| handle.add_container(container))
        .await?;
    Ok((StatusCode::CREATED, Json(partition)))
}

/// Adds a VM. Its VMM connects to the socket named in the response.
#[utoipa::path(post, operation_id = "add_vm", path = "/v1/vms",
    tag = "partitions", request_body = NewVm,
    responses(
        (status = 201, description = "the new partition", body = Partition),
        TooLarge, Invalid, Forbidden,
        (status = 409, body = ErrorBody, description = "the name, id or CID is taken"),
    ))]
pub(super) async fn add_vm(
    State(api): State<Api>,
    _: PrivilegedPeer,
    JsonBody(vm): JsonBody<NewVm>,
) -> Result<(StatusCode, Json<Partition>), ApiError> {
    let partition = api.call(move |handle| handle.add_vm(vm)).await?;
    Ok((StatusCode::CREATED, Json(partition)))
}

/// One partition.
#[utoipa::path(get, operation_id = "show_partition", path = "/v1/partitions/{partition}",
    tag = "partitions",
    params(("partition" = String, Path, description = "a name or a GUID")),
    responses(
        (status = 200, description = "the current state", body = Partition),
        Invalid, NotFound,
    ))]
pub(super) async fn show(
    State(api): State<Api>,
    PathParam(partition): PathParam<PartitionRef>,
) -> Result<Json<Partition>, ApiError> {
    api.call(move |handle| handle.partition(&partition))
        .await
        .map(Json)
}

/// Pauses or resumes a partition, or changes its groups.
#[utoipa::path(patch, operation_id = "change_partition", path = "/v1/partitions/{partition}",
    tag = "partitions",
    params(("partition" = String, Path, description = "a name or a GUID")),
    request_body = PartitionChange,
    responses(
        (status = 200, description = "the current state", body = Partition),
        TooLarge, Invalid, Forbidden, NotFound,
    ))]
pub(super) async fn change(
    State(api): State<Api>,
    _: PrivilegedPeer,
    PathParam(partition): PathParam<PartitionRef>,
    JsonBody(change): JsonBody<PartitionChange>,
) -> Result<Json<Partition>, ApiError> {
    let changed = api.call(move |handle| {
        if let Some(groups) = change.groups {
            handle.set_groups(&partition, groups)?;
        }
        match change.state {
            Some(state) => handle.set_state(&partition, state),
            None => handle.partition(&partition),
        }
    });
    changed.await.map(Json)
}

/// Sends a command to the agent in a partition's guest. Does not wait for its effect.
#[utoipa::path(post, operation_id = "send_guest_command", path = "/v1/partitions/{partition}/commands",
    tag = "partitions",
    params(("partition" = String, Path, description = "a name or a GUID")),
    request_body = NewGuestCommand,
    responses(
        (status = 202, description = "the command was sent; the current state", body = Partition),
        TooLarge,
        (status = 400, description = "invalid request, or no agent is connected",
            body = ErrorBody),
        Forbidden, NotFound,
    ))]
pub(super) async fn send_command(
    State(api): State<Api>,
    _: PrivilegedPeer,
    PathParam(partition): PathParam<PartitionRef>,
    JsonBody(new): JsonBody<NewGuestCommand>,
) -> Result<(StatusCode, Json<Partition>), ApiError> {
    let accepted = api.call(move |handle| {
        handle.send_guest_command(&partition, new.command)?;
        handle.partition(&partition)
    });
    Ok((StatusCode::ACCEPTED, Json(accepted.await?)))
}

/// Removes a VM or container and closes its connections.
#[utoipa::path(delete, operation_id = "remove_partition", path = "/v1/partitions/{partition}",
    tag = "partitions",
    params(("partition" = String, Path, description = "a name or a GUID")),
    responses(
        (status = 200, body = Partition, description = "the state before"),
        Invalid, Forbidden, NotFound,
    ))]
pub(super) async fn remove(
    State(api): State<Api>,
    _: PrivilegedPeer,
    PathParam(partition): PathParam<PartitionRef>,
) -> Result<Json<Partition>, ApiError> {
    api.call(move |handle| handle.remove_partition(&partition))
        .await
        .map(Json)
}
