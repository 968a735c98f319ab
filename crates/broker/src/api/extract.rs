//! Extractors for the handlers. They reject with [`ApiError`] instead of axum's own errors.

use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use bytes::Bytes;
use http_body_util::LengthLimitError;
use hvsock_fabric::{Fix, Operators};
use hvsock_registry::Principal;
use hyper::body::Body;
use serde::de::DeserializeOwned;

use super::asked::Asked;
use super::error::ApiError;

use crate::RecordScope;
use crate::callers::Caller;

/// The calling process, as the kernel identifies it.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    principal: Arc<Principal>,
    caller: Caller,
    /// Who may change the broker's state.
    operators: Operators,
}

impl Peer {
    pub fn new(principal: Principal, caller: Caller, operators: Operators) -> Self {
        Self {
            principal: Arc::new(principal),
            caller,
            operators,
        }
    }

    /// Its credentials.
    pub fn caller(&self) -> Caller {
        self.caller
    }

    /// The records of the audit that it may read: all as an operator, otherwise those about itself.
    pub fn records(&self) -> RecordScope {
        match self.privileged() {
            true => RecordScope::All,
            false => RecordScope::User(self.uid()),
        }
    }

    pub fn uid(&self) -> u32 {
        self.principal.uid
    }

    /// The identity that access rules match against.
    pub fn principal(&self) -> Principal {
        Principal::clone(&self.principal)
    }

    /// Its user's name, or the uid if the user has none.
    pub fn user_name(&self) -> String {
        let name = self.principal.user.clone();
        name.unwrap_or_else(|| self.uid().to_string())
    }

    /// Whether it may change the broker's state.
    pub fn privileged(&self) -> bool {
        self.operators.check(&self.principal).is_ok()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Peer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let unknown = || ApiError::new(StatusCode::FORBIDDEN, "the caller's user is unknown");
        parts.extensions.get().cloned().ok_or_else(unknown)
    }
}

/// A peer that may change the broker's state. Extracted before the body, so that the body of an
/// unprivileged request is never read.
#[derive(Clone, Debug)]
pub(crate) struct PrivilegedPeer(pub Peer);

impl<S: Send + Sync> FromRequestParts<S> for PrivilegedPeer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let peer = Peer::from_request_parts(parts, state).await?;
        match peer.operators.check(&peer.principal) {
            Ok(_) => Ok(Self(peer)),
            Err(denied) => {
                let error = ApiError::new(StatusCode::FORBIDDEN, denied.to_string());
                Err(error.fix(Fix::BecomeOperator))
            }
        }
    }
}

/// A parsed path segment: a service, a partition or a number.
pub(crate) struct PathParam<T>(pub T);

impl<S: Send + Sync, T: FromStr<Err: Display>> FromRequestParts<S> for PathParam<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| ApiError::bad_request(rejection.body_text()))?;
        text.parse().map(Self).map_err(ApiError::bad_request)
    }
}

/// The parsed query of the URL.
pub(crate) struct QueryParams<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for QueryParams<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query
            .map(|Query(value)| Self(value))
            .map_err(|rejection| ApiError::bad_request(rejection.body_text()))
    }
}

/// A JSON body. The content type is not checked: no other kind exists, and no browser can reach a
/// Unix socket.
pub(crate) struct JsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let asked = request.extensions().get::<Asked>().cloned();
        let RawBody(bytes) = RawBody::from_request(request, state).await?;
        if let Some(asked) = asked {
            asked.set_body(&bytes);
        }
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|error| ApiError::bad_request(format!("invalid body: {error}")))
    }
}

/// The size limit of a body in bytes, as an extension of the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimit(pub usize);

/// An unparsed body.
pub(crate) struct RawBody(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for RawBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let asked = request.extensions().get::<Asked>().cloned();
        let limit = request
            .extensions()
            .get()
            .map_or(0, |BodyLimit(limit)| *limit);
        let body = request.into_body();
        // Do not wait for a body that announces itself as too large.
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if announced > limit {
            return Err(too_large(limit));
        }
        axum::body::to_bytes(body, limit)
            .await
            .inspect(|bytes| {
                if let Some(asked) = &asked {
                    asked.set_size(bytes.len());
                }
            })
            .map(Self)
            .map_err(|error| {
                let source = std::error::Error::source(&error);
                if source.is_some_and(<dyn std::error::Error>::is::<LengthLimitError>) {
                    too_large(limit)
                } else {
                    ApiError::bad_request(format!("cannot read the body: {error}"))
                }
            })
    }
}

fn too_large(limit: usize) -> ApiError {
    let message = format!("the body exceeds this request's limit of {limit} bytes");
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}
