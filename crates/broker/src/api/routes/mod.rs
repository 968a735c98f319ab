//! The control API's routes and handlers, one file per kind of object.

mod audit;
mod connections;
mod containers;
mod events;
mod explain;
mod partitions;
mod registry;
mod services;
mod status;
mod upgrade;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::extract::BodyLimit;
use super::limits::Limits;
use super::record::{self, Recorder};
use super::state::{Api, response};
use crate::handle::Handle;
use crate::model::ErrorBody;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "hvsock control API",
        description = "Services, partitions, listeners and connections of one hvsock broker, over \
            the Unix socket `control` in the broker's folder. Reading needs no privilege; changing \
            needs root, the broker's own user or a member of the broker's group of operators. A SERVICE is a friendly name, a GUID or a vsock \
            port; a PARTITION is a name or a GUID. Errors have an `ErrorBody`. Besides those \
            listed, any request may fail with 408 (timed out), 431 (head too large), 500 (a \
            system call failed), 503 (busy; try again) and 507 (a limit of the broker is reached).",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    // utoipa collects no schemas from the responses that operations share.
    components(schemas(ErrorBody)),
    tags(
        (name = "broker", description = "The broker itself"),
        (name = "services", description = "The registry"),
        (name = "partitions", description = "The host and its children"),
        (name = "connections", description = "Listeners and connections"),
    )
)]
struct Document;

/// The OpenAPI document as JSON, of which `docs/openapi.json` is a copy.
pub fn openapi() -> String {
    let mut json = parts(&Limits::default())
        .to_openapi()
        .to_pretty_json()
        .unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"));
    json.push('\n');
    json
}

fn parts(limits: &Limits) -> OpenApiRouter<Api> {
    let import = OpenApiRouter::new()
        .routes(routes!(registry::export, registry::import))
        .layer(Extension(BodyLimit(limits.import_bytes)));
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(status::status))
        .routes(routes!(status::threads))
        .routes(routes!(services::list, services::register))
        .routes(routes!(
            services::show,
            services::change,
            services::unregister
        ))
        .routes(routes!(services::change_access, services::reset_access))
        .routes(routes!(services::set_transport))
        .routes(routes!(partitions::list, partitions::add))
        .routes(routes!(partitions::add_vm))
        .routes(routes!(
            partitions::show,
            partitions::change,
            partitions::remove
        ))
        .routes(routes!(partitions::send_command))
        .routes(routes!(containers::bind, containers::release))
        .routes(routes!(connections::listeners))
        .routes(routes!(connections::list))
        .routes(routes!(connections::show, connections::close))
        .routes(routes!(explain::explain))
        .routes(routes!(events::events))
        .routes(routes!(audit::list))
        .routes(routes!(audit::state_result))
        .routes(routes!(status::metrics))
        .routes(routes!(upgrade::upgrade))
        .layer(Extension(BodyLimit(limits.body_bytes)))
        .merge(import)
}

/// The router with all routes and fallbacks, and a timeout for each request.
pub(crate) fn router(handle: Handle, limits: &Limits) -> Router {
    let (router, description) = parts(limits).split_for_parts();
    let recorder = Recorder::new(handle.clone(), &description);
    let api = Api::new(handle, limits);
    let document: Arc<str> = openapi().into();
    let limits = *limits;
    router
        .route(
            "/openapi.json",
            axum::routing::get(async move || {
                response("application/json", Body::from(document.to_string()))
            }),
        )
        .fallback(async || {
            let message = "unknown path; /openapi.json lists the paths";
            ApiError::new(StatusCode::NOT_FOUND, message)
        })
        .method_not_allowed_fallback(async || {
            let message =
                "this path does not support the method; /openapi.json lists those it does";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
        })
        .layer(middleware::from_fn(move |request, next| {
            with_timeout(limits, request, next)
        }))
        .layer(middleware::from_fn_with_state(recorder, record::record))
        .with_state(api)
}

async fn with_timeout(limits: Limits, request: Request, next: Next) -> Response {
    let long = [registry::PATH, upgrade::PATH].contains(&request.uri().path());
    let limit = if long && request.method() == Method::POST {
        limits.import
    } else {
        limits.request
    };
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = "the request timed out";
            ApiError::new(StatusCode::REQUEST_TIMEOUT, message).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use utoipa::openapi::RefOr;

    use super::*;

    #[test]
    fn the_committed_openapi_document_is_the_one_that_is_served() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == openapi(),
            "docs/openapi.json is out of date; run `cargo xtask openapi` and commit it"
        );
    }

    #[test]
    fn operation_ids_are_unique_and_every_response_has_a_description() {
        let document = parts(&Limits::default()).to_openapi();
        let mut names = HashSet::new();
        for item in document.paths.paths.values() {
            let operations = [&item.get, &item.post, &item.patch, &item.delete];
            for operation in operations.into_iter().flatten() {
                let name = operation.operation_id.clone().unwrap_or_default();
                assert!(names.insert(name.clone()), "{name} is used twice");
                for (status, response) in &operation.responses.responses {
                    let RefOr::T(response) = response else {
                        continue;
                    };
                    assert!(!response.description.is_empty(), "{name} {status}");
                }
            }
        }
        assert!(names.len() > 15, "{names:?}");
    }
}
