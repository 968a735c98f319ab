//! The containers of runtimes, which the runtimes' hooks bind to container partitions.

use axum::Extension;
use axum::extract::State;
use hvsock_address::PartitionRef;
use hvsock_sys::pidfd::Process;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::attachment::Attachment;
use crate::api::error::ApiError;
use crate::api::extract::{JsonBody, PathParam, PrivilegedPeer, QueryParams};
use crate::api::json::Json;
use crate::api::responses::{Forbidden, Invalid, NotFound, TooLarge};
use crate::api::state::Api;
use crate::model::{ErrorBody, NewBinding, Partition};

/// Binds a container of a runtime to a container partition, until its first process ends. That process is
/// named by a pidfd, sent with the first byte of the request (`SCM_RIGHTS`), or by its number.
#[utoipa::path(post, operation_id = "bind_container", path = "/v1/partitions/{partition}/container",
    tag = "partitions",
    params(("partition" = String, Path, description = "a name or a GUID")),
    request_body = NewBinding,
    responses(
        (status = 200, description = "the current state", body = Partition),
        TooLarge, Invalid, Forbidden, NotFound,
        (status = 409, body = ErrorBody,
            description = "another container that runs is bound to it, or this one to another"),
    ))]
pub(super) async fn bind(
    State(api): State<Api>,
    _: PrivilegedPeer,
    PathParam(partition): PathParam<PartitionRef>,
    attachment: Option<Extension<Attachment>>,
    JsonBody(new): JsonBody<NewBinding>,
) -> Result<Json<Partition>, ApiError> {
    let attached = attachment.and_then(|Extension(attachment)| attachment.take());
    let process = attached.map(Process::from_descriptor).transpose();
    let process = process
        .map_err(|_| ApiError::bad_request("the descriptor of the request is not a pidfd"))?;
    let bound = api.call(move |handle| handle.bind_container(&partition, new, process));
    bound.await.map(Json)
}

/// Which container it is.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Released {
    /// The runtime's id of the container.
    oci_id: String,
}

/// Records that a runtime has removed a container. Does nothing if another container is bound to the
/// partition, or none. A partition that is ephemeral is removed.
#[utoipa::path(delete, operation_id = "release_container",
    path = "/v1/partitions/{partition}/container",
    tag = "partitions",
    params(("partition" = String, Path, description = "a name or a GUID"), Released),
    responses(
        (status = 200, body = Partition,
            description = "the current state, or that before the partition was removed"),
        Invalid, Forbidden, NotFound,
    ))]
pub(super) async fn release(
    State(api): State<Api>,
    _: PrivilegedPeer,
    PathParam(partition): PathParam<PartitionRef>,
    QueryParams(released): QueryParams<Released>,
) -> Result<Json<Partition>, ApiError> {
    let released = api.call(move |handle| handle.release_container(&partition, &released.oci_id));
    released.await.map(Json)
}
