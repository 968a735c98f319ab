//! The broker's own partition and its children.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use hvsock_address::PartitionRef;

use super::Api;
use crate::api::error::ApiError;
use crate::api::extract::{Changer, JsonBody, Peer, Segment};
use crate::handle::Handle;
use crate::model::{ErrorBody, NewContainer, NewGuestOrder, NewVm, Partition, PartitionChange};

/// Every partition, parents before their children.
#[utoipa::path(get, operation_id = "list_partitions", path = "/v1/partitions", tag = "partitions",
    responses(
        (status = 200, description = "as it is now", body = Vec<Partition>),
        (status = 503, description = "busy; try again", body = ErrorBody),
    ))]
pub(super) async fn list(State(api): State<Api>, peer: Peer) -> Result<Response, ApiError> {
    api.listing(&peer, Handle::partitions).await
}

/// Adds a container and makes its endpoint.
#[utoipa::path(post, operation_id = "add_container", path = "/v1/partitions",
    tag = "partitions", request_body = NewContainer,
    responses(
        (status = 201, description = "as it is now", body = Partition),
        (status = 413, description = "the body is too large", body = ErrorBody),
        (status = 400, description = "the request does not fit", body = ErrorBody),
        (status = 403, description = "not root or the broker's user", body = ErrorBody),
        (status = 409, body = ErrorBody, description = "the name or id is taken"),
    ))]
pub(super) async fn add(
    State(api): State<Api>,
    _: Changer,
    JsonBody(container): JsonBody<NewContainer>,
) -> Result<(StatusCode, Json<Partition>), ApiError> {
    let partition = api
        .call(move |handle| handle.add_container(container))
        .await?;
    Ok((StatusCode::CREATED, Json(partition)))
}

/// Adds a VM; its VMM connects to the socket that the answer names.
#[utoipa::path(post, operation_id = "add_vm", path = "/v1/vms",
    tag = "partitions", request_body = NewVm,
    responses(
        (status = 201, description = "as it is now", body = Partition),
        (status = 413, description = "the body is too large", body = ErrorBody),
        (status = 400, description = "the request does not fit", body = ErrorBody),
        (status = 403, description = "not root or the broker's user", body = ErrorBody),
        (status = 409, body = ErrorBody, description = "the name, id or CID is taken"),
    ))]
pub(super) async fn add_vm(
    State(api): State<Api>,
    _: Changer,
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
        (status = 200, description = "as it is now", body = Partition),
        (status = 400, description = "the request does not fit", body = ErrorBody),
        (status = 404, description = "there is no such thing", body = ErrorBody),
    ))]
pub(super) async fn show(
    State(api): State<Api>,
    Segment(partition): Segment<PartitionRef>,
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
        (status = 200, description = "as it is now", body = Partition),
        (status = 413, description = "the body is too large", body = ErrorBody),
        (status = 400, description = "the request does not fit", body = ErrorBody),
        (status = 403, description = "not root or the broker's user", body = ErrorBody),
        (status = 404, description = "there is no such thing", body = ErrorBody),
    ))]
pub(super) async fn change(
    State(api): State<Api>,
    _: Changer,
    Segment(partition): Segment<PartitionRef>,
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

/// Asks the agent in a partition's guest for something; it may take a moment to do it.
#[utoipa::path(post, operation_id = "order_guest", path = "/v1/partitions/{partition}/orders",
    tag = "partitions",
    params(("partition" = String, Path, description = "a name or a GUID")),
    request_body = NewGuestOrder,
    responses(
        (status = 202, description = "as it is now", body = Partition),
        (status = 413, description = "the body is too large", body = ErrorBody),
        (status = 400, description = "the request does not fit, or no agent takes orders",
            body = ErrorBody),
        (status = 403, description = "not root or the broker's user", body = ErrorBody),
        (status = 404, description = "there is no such thing", body = ErrorBody),
    ))]
pub(super) async fn order(
    State(api): State<Api>,
    _: Changer,
    Segment(partition): Segment<PartitionRef>,
    JsonBody(new): JsonBody<NewGuestOrder>,
) -> Result<(StatusCode, Json<Partition>), ApiError> {
    let ordered = api.call(move |handle| {
        handle.order_guest(&partition, new.order)?;
        handle.partition(&partition)
    });
    Ok((StatusCode::ACCEPTED, Json(ordered.await?)))
}

/// Removes a VM or container and cuts its connections.
#[utoipa::path(delete, operation_id = "remove_partition", path = "/v1/partitions/{partition}",
    tag = "partitions",
    params(("partition" = String, Path, description = "a name or a GUID")),
    responses(
        (status = 200, body = Partition, description = "as it was"),
        (status = 400, description = "the request does not fit", body = ErrorBody),
        (status = 403, description = "not root or the broker's user", body = ErrorBody),
        (status = 404, description = "there is no such thing", body = ErrorBody),
    ))]
pub(super) async fn remove(
    State(api): State<Api>,
    _: Changer,
    Segment(partition): Segment<PartitionRef>,
) -> Result<Json<Partition>, ApiError> {
    api.call(move |handle| handle.remove_partition(&partition))
        .await
        .map(Json)
}
