//! What the handlers share: the broker's handle, and the permits for what is costly.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::body;
use super::error::ApiError;
use super::extract::Peer;
use super::limits::Limits;
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

/// A limit on something costly, for privileged users and for all others each.
#[derive(Clone, Debug)]
pub(super) struct Permits {
    privileged: Arc<Semaphore>,
    others: Arc<Semaphore>,
}

impl Permits {
    fn new(each: usize) -> Self {
        Self {
            privileged: Arc::new(Semaphore::new(each)),
            others: Arc::new(Semaphore::new(each)),
        }
    }

    pub fn of(&self, peer: &Peer) -> Arc<Semaphore> {
        let semaphore = if peer.privileged() {
            &self.privileged
        } else {
            &self.others
        };
        semaphore.clone()
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
        let permit = self.permit(&self.listings, peer).await?;
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

    /// Waits for a permit. The request's timeout bounds the wait.
    pub async fn permit(
        &self,
        from: &Permits,
        peer: &Peer,
    ) -> Result<OwnedSemaphorePermit, ApiError> {
        let permit = from.of(peer).acquire_owned().await;
        permit.map_err(|_| ApiError::busy())
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
