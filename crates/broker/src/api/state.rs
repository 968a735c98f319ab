//! What the handlers share: the broker's handle, and the permits for what is costly.

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::body;
use super::error::ApiError;
use super::extract::Peer;
use super::limits::Limits;
use super::permits::Permits;
use crate::api::json::to_json;
use crate::handle::{ControlError, Handle};

/// The state shared by all handlers.
#[derive(Clone)]
pub(super) struct Api {
    pub handle: Handle,
    pub listings: Permits,
    pub followers: Permits,
}

impl Api {
    pub fn new(handle: Handle, limits: &Limits) -> Self {
        Self {
            handle,
            listings: Permits::new(limits.listings),
            followers: Permits::new(limits.followers),
        }
    }
}

impl Api {
    /// Runs one of the broker's functions, which block for a bounded time, on a blocking thread.
    pub async fn call<T: Send + 'static>(
        &self,
        function: impl FnOnce(&Handle) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let handle = self.handle.clone();
        blocking(move || function(&handle))
            .await?
            .map_err(ApiError::from)
    }

    /// Makes and sends a listing. A permit bounds how many are in memory at once.
    pub async fn listing<T: Serialize + Send + 'static>(
        &self,
        peer: &Peer,
        function: impl FnOnce(&Handle) -> Result<T, ControlError> + Send + 'static,
    ) -> Result<Response, ApiError> {
        let permit = self.listings.acquire(peer).await?;
        let handle = self.handle.clone();
        let bytes = blocking(move || {
            let value = function(&handle)?;
            to_json(&value).map_err(|error| {
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
            })
        })
        .await??;
        Ok(response(
            "application/json",
            body::listing(bytes.into_bytes(), permit),
        ))
    }
}

/// Runs `function` on a blocking thread.
pub(super) async fn blocking<T: Send + 'static>(
    function: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    // Fails only while the server shuts down.
    let done = tokio::task::spawn_blocking(function).await;
    done.map_err(|_| ApiError::busy())
}

/// A response with this content type.
pub(super) fn response(content_type: &'static str, body: Body) -> Response {
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}
