//! Explanations of connects and listens, without performing them.

use axum::extract::State;
use hvsock_address::{PartitionRef, ServiceRef};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::api::error::ApiError;
use crate::api::extract::{Peer, QueryParams};
use crate::api::json::Json;
use crate::api::responses::Invalid;
use crate::api::state::Api;
use crate::model::{ErrorBody, ExplanationReport};

/// The connect or listen to explain.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ExplainParams {
    /// The partition that connects or listens: a name or a GUID. Default: the broker's own.
    #[serde(default)]
    #[param(value_type = Option<String>)]
    from: Option<PartitionRef>,
    /// The partition to reach, or to accept from: a keyword such as `parent`, a name or a GUID.
    #[param(value_type = String)]
    to: PartitionRef,
    /// The service: a friendly name, a GUID or a vsock port.
    #[param(value_type = String)]
    service: ServiceRef,
    /// Explains a listen instead of a connect.
    #[serde(default)]
    listen: bool,
}

/// Explains what a connect or listen by the calling user would result in.
#[utoipa::path(get, path = "/v1/explain", tag = "connections", params(ExplainParams),
    responses(
        (status = 200, description = "the explanation", body = ExplanationReport),
        Invalid,
        (status = 404, body = ErrorBody, description = "no such partition or friendly name"),
    ))]
pub(super) async fn explain(
    State(api): State<Api>,
    peer: Peer,
    QueryParams(question): QueryParams<ExplainParams>,
) -> Result<Json<ExplanationReport>, ApiError> {
    let explained = api.call(move |handle| {
        let ExplainParams {
            from, to, service, ..
        } = question;
        let principal = peer.principal();
        if question.listen {
            handle.explain_listen(from.as_ref(), &to, &service, principal)
        } else {
            handle.explain_connect(from.as_ref(), &to, &service, principal)
        }
    });
    explained.await.map(Json)
}
