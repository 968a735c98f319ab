//! Records every request that changes something in the audit, also the refused ones.
//!
//! A middleware does it for all routes, so that none can be forgotten: it knows who asked, the
//! operation by its name in the OpenAPI document, the object in the path, and the status. The extractors
//! add the body, once a handler has read it; the body of an unprivileged request is never read.

use std::collections::HashMap;
use std::sync::Arc;

use axum::RequestExt;
use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hvsock_address::{PartitionRef, ServiceRef};
use utoipa::openapi::OpenApi;

use super::asked::{Asked, RESULT_PATH};
use super::error::{ApiError, Reason};
use super::extract::Peer;
use crate::Handle;
use crate::audit::{MAX_TEXT, visible};
use crate::model::{AuditCategory, AuditOutcome, AuditRecord};

/// What the middleware needs: the broker, and the name of each operation.
#[derive(Clone)]
pub(super) struct Recorder {
    handle: Handle,
    operations: Arc<HashMap<(Method, String), String>>,
}

impl Recorder {
    pub fn new(handle: Handle, document: &OpenApi) -> Self {
        let mut operations = HashMap::new();
        for (path, item) in &document.paths.paths {
            let methods = [
                (Method::POST, &item.post),
                (Method::PATCH, &item.patch),
                (Method::PUT, &item.put),
                (Method::DELETE, &item.delete),
            ];
            for (method, operation) in methods {
                if let Some(name) = operation.as_ref().and_then(|one| one.operation_id.clone()) {
                    operations.insert((method, path.clone()), name);
                }
            }
        }
        Self {
            handle,
            operations: Arc::new(operations),
        }
    }

    /// The name of the operation, or the method and path of an unknown one.
    fn operation(&self, method: &Method, path: &str) -> String {
        let key = (method.clone(), path.to_owned());
        match self.operations.get(&key) {
            Some(name) => name.clone(),
            None => visible(&format!("{method} {path}"), MAX_TEXT),
        }
    }
}

/// Handles a request, and records it if it is one to change something.
pub(super) async fn record(
    State(recorder): State<Recorder>,
    mut request: Request,
    next: Next,
) -> Response {
    let method = request.method().clone();
    let peer = request.extensions().get::<Peer>().cloned();
    let path = request.extensions().get::<MatchedPath>();
    let path = path
        .map_or(request.uri().path(), MatchedPath::as_str)
        .to_owned();
    // What a process says about its own connection is part of that connection's record.
    let is_claim = path == RESULT_PATH;
    let Some(peer) = peer.filter(|_| !method.is_safe() && !is_claim) else {
        return next.run(request).await;
    };
    let asked = Asked::default();
    let object = match request.extract_parts::<RawPathParams>().await {
        Ok(params) => params
            .iter()
            .next()
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        Err(_) => None,
    };
    request.extensions_mut().insert(asked.clone());
    let response = next.run(request).await;
    let status = response.status();
    let body = asked.take();
    let mut record = AuditRecord {
        category: AuditCategory::Change,
        action: recorder.operation(&method, &path),
        outcome: outcome(status),
        reason: response
            .extensions()
            .get::<Reason>()
            .map(|reason| visible(&reason.0, MAX_TEXT)),
        detail: body.text,
        ..AuditRecord::default()
    };
    // A new object has its name in the body.
    let named = body.name.as_deref().map(|name| visible(name, MAX_TEXT));
    match path.starts_with("/v1/services") {
        true => record.service = named,
        false => record.target = named,
    }
    if let Some(vm) = &body.vm {
        record.target = Some(visible(vm, MAX_TEXT));
    }
    if let Some((name, value)) = object {
        match name.as_str() {
            "service" => record.service = Some(visible(&value, MAX_TEXT)),
            "id" => record.connection = value.parse().ok(),
            _ => record.target = Some(visible(&value, MAX_TEXT)),
        }
    }
    if recorder.handle.upgrades.left_to().is_some() {
        // An upgrade, which is recorded before it begins: this broker records nothing any more.
        return response;
    }
    let (caller, operator) = (peer.caller(), peer.privileged());
    let recorded = super::state::blocking(move || {
        let named = |text: &mut Option<String>, name: &dyn Fn(&str) -> Option<String>| {
            if let Some(found) = text.as_deref().and_then(name) {
                *text = Some(found);
            }
        };
        named(&mut record.target, &|text| recorder.partition_name(text));
        named(&mut record.service, &|text| recorder.service_name(text));
        recorder.handle.record_change(caller, operator, record)
    });
    match recorded.await {
        Ok(Ok(())) => response,
        // The change is done. What cannot be recorded is not told as a success.
        Ok(Err(error)) => ApiError::from(error).into_response(),
        Err(error) => error.into_response(),
    }
}

impl Recorder {
    /// The name of a partition that a request named by its GUID.
    fn partition_name(&self, text: &str) -> Option<String> {
        let PartitionRef::Id(_) = text.parse().ok()? else {
            return None;
        };
        let found = self.handle.partition(&text.parse().ok()?);
        Some(found.ok()?.name.to_string())
    }

    /// The friendly name of a service that a request named by its GUID or port.
    fn service_name(&self, text: &str) -> Option<String> {
        let ServiceRef::Id(_) = text.parse().ok()? else {
            return None;
        };
        let found = self.handle.service(&text.parse().ok()?);
        Some(found.ok()?.name.to_string())
    }
}

fn outcome(status: StatusCode) -> AuditOutcome {
    match status {
        status if status.is_success() => AuditOutcome::Allowed,
        // The request may still take effect.
        StatusCode::REQUEST_TIMEOUT | StatusCode::SERVICE_UNAVAILABLE => AuditOutcome::Failed,
        status if status.is_server_error() => AuditOutcome::Failed,
        _ => AuditOutcome::Refused,
    }
}
