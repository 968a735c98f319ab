//! Upgrades.

use axum::Extension;
use axum::extract::State;

use crate::api::error::ApiError;
use crate::api::extract::{JsonBody, PrivilegedPeer};
use crate::api::gate::Busy as Client;
use crate::api::json::Json;
use crate::api::responses::{Forbidden, Invalid, TooLarge};
use crate::api::state::Api;
use crate::model::{AuditCategory, AuditOutcome, AuditRecord, ErrorBody, NewUpgrade, Upgrade};

pub(super) const PATH: &str = "/v1/upgrade";

/// Starts the broker's program, as it is on disk now, and hands the running broker over to it, with all its
/// connections. The answer comes from the old one, which ends then. If anything fails, it goes on.
#[utoipa::path(post, operation_id = "upgrade", path = "/v1/upgrade", tag = "broker",
    request_body = NewUpgrade,
    responses(
        (status = 200, description = "the broker was handed over, or could have been", body = Upgrade),
        TooLarge, Invalid, Forbidden,
        (status = 500, body = ErrorBody, description = "the running broker goes on, for the reason given"),
    ))]
pub(super) async fn upgrade(
    State(api): State<Api>,
    PrivilegedPeer(peer): PrivilegedPeer,
    client: Option<Extension<Client>>,
    JsonBody(new): JsonBody<NewUpgrade>,
) -> Result<Json<Upgrade>, ApiError> {
    let client = client.map(|Extension(client)| client);
    let upgraded = api.call(move |handle| {
        if !new.dry_run {
            let record = AuditRecord {
                category: AuditCategory::Change,
                action: "upgrade".into(),
                outcome: AuditOutcome::Allowed,
                detail: Some("begins".into()),
                ..AuditRecord::default()
            };
            handle.record_change(peer.caller(), true, record)?;
        }
        handle.upgrade_for(&new, client)
    });
    upgraded.await.map(Json)
}
