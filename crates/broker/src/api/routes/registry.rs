//! Export and import of the whole registry.

use axum::extract::State;
use axum::response::Response;
use hvsock_address::ServiceRef;
use hvsock_registry::reg_file;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::api::body;
use crate::api::error::ApiError;
use crate::api::extract::{Peer, PrivilegedPeer, QueryParams, RawBody};
use crate::api::json::Json;
use crate::api::responses::{Busy, Forbidden, Invalid, TooLarge};
use crate::api::state::{Api, blocking, response};
use crate::handle::{ControlError, Handle};
use crate::model::{ErrorBody, Import, Imported, NewService};

/// The path of both operations.
pub(super) const PATH: &str = "/v1/registry";

/// The file formats of a registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Format {
    /// A list of `NewService`.
    #[default]
    Json,
    /// The `.reg` format of Windows (`reg export`, `reg import`): UTF-16 with a byte order mark.
    Reg,
}

/// The file format.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct FormatParams {
    /// `json` or `reg`.
    #[serde(default)]
    #[param(inline)]
    format: Format,
}

const REG_CONTENT: &str = "text/plain; charset=utf-16le";

/// Exports all registrations except leases.
#[utoipa::path(get, operation_id = "export_registry", path = "/v1/registry",
    tag = "services", params(FormatParams),
    responses(
        (status = 200, description = "the file", content(
            (Vec<NewService> = "application/json"),
            (String = "text/plain; charset=utf-16le"),
        )),
        Invalid, Busy,
    ))]
pub(super) async fn export(
    State(api): State<Api>,
    peer: Peer,
    QueryParams(params): QueryParams<FormatParams>,
) -> Result<Response, ApiError> {
    match params.format {
        Format::Json => {
            let list = api.listing(&peer, |handle| {
                let all = handle.export()?;
                Ok(all.into_iter().map(NewService::from).collect::<Vec<_>>())
            });
            list.await
        }
        Format::Reg => {
            let permit = api.listings.acquire(&peer).await?;
            let handle = api.handle.clone();
            let file = move || Ok::<_, ApiError>(reg_file::export(&handle.export()?));
            let file = blocking(file).await??;
            Ok(response(REG_CONTENT, body::listing(file, permit)))
        }
    }
}

/// Registers every service of a file, or none if one is refused. The services that a `.reg` file
/// deletes are removed first; a later refusal does not restore them.
#[utoipa::path(post, operation_id = "import_registry", path = "/v1/registry",
    tag = "services", params(FormatParams),
    request_body(content(
        (Vec<NewService> = "application/json"),
        (String = "text/plain; charset=utf-16le"),
    )),
    responses(
        (status = 200, description = "the added and removed registrations", body = Imported),
        Invalid, Forbidden,
        (status = 409, body = ErrorBody, description = "a GUID, name or port is taken"),
        TooLarge,
    ))]
pub(super) async fn import(
    State(api): State<Api>,
    PrivilegedPeer(peer): PrivilegedPeer,
    QueryParams(params): QueryParams<FormatParams>,
    RawBody(file): RawBody,
) -> Result<Json<Imported>, ApiError> {
    let owner = peer.user_name();
    let handle = api.handle.clone();
    let import = move || match params.format {
        Format::Json => from_json(&handle, &file, &owner),
        Format::Reg => from_reg(&handle, &file, &owner),
    };
    blocking(import).await?.map(Json)
}

fn from_json(handle: &Handle, file: &[u8], owner: &str) -> Result<Imported, ApiError> {
    let list: Vec<NewService> = serde_json::from_slice(file)
        .map_err(|error| ApiError::bad_request(format!("invalid file: {error}")))?;
    let import = Import::of_list(list, owner).map_err(ApiError::bad_request)?;
    apply_import(handle, import)
}

fn from_reg(handle: &Handle, file: &[u8], owner: &str) -> Result<Imported, ApiError> {
    let import = Import::of_reg_file(file, owner).map_err(ApiError::bad_request)?;
    apply_import(handle, import)
}

fn apply_import(handle: &Handle, import: Import) -> Result<Imported, ApiError> {
    let mut removed = Vec::new();
    for id in import.removed {
        match handle.unregister(&ServiceRef::Id(id)) {
            Ok(service) => removed.push(service),
            Err(ControlError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Imported {
        added: handle.import(import.registrations)?,
        removed,
        notes: import.notes,
    })
}
