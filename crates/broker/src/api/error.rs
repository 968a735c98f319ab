//! Errors of requests: an HTTP status and a message.

use std::sync::Arc;

use axum::Extension;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use hvsock_fabric::{AddPartitionError, Fix, PartitionError, RegisterError};
use hvsock_registry::store::StoreError;

use crate::api::json::Json;
use crate::handle::ControlError;
use crate::model::{ErrorBody, FixReport};

/// The message of an error, as an extension of its response: for the audit.
#[derive(Clone, Debug)]
pub(crate) struct Reason(pub Arc<str>);

/// An error response.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    fix: Option<Box<Fix>>,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            fix: None,
        }
    }

    /// Adds what would help.
    pub fn fix(self, fix: impl Into<Option<Fix>>) -> Self {
        Self {
            fix: fix.into().map(Box::new),
            ..self
        }
    }

    #[allow(clippy::needless_pass_by_value, reason = "made for `map_err`")]
    pub fn bad_request(message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message.to_string())
    }

    pub fn busy() -> Self {
        ControlError::Busy.into()
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        use ControlError as E;

        let status = match &error {
            E::NotFound { .. } => StatusCode::NOT_FOUND,
            E::Add(AddPartitionError::LimitReached { .. })
            | E::Partition(PartitionError::LimitReached { .. })
            | E::Register(RegisterError::LimitReached { .. })
            | E::Store(StoreError::Limit(_))
            | E::Limit(_) => StatusCode::INSUFFICIENT_STORAGE,
            E::Clash(_)
            | E::Add(_)
            | E::CidTaken(_)
            | E::HybridPathTaken(_)
            | E::DeviceTaken { .. }
            | E::Differs(_)
            | E::ContainerTaken(_)
            | E::Register(_)
            | E::Store(StoreError::Clash(_)) => StatusCode::CONFLICT,
            E::Invalid(_)
            | E::NotNow { .. }
            | E::Partition(_)
            | E::Store(StoreError::Unstorable(_)) => StatusCode::BAD_REQUEST,
            E::Store(_) | E::System(_) | E::Upgrade(_) => StatusCode::INTERNAL_SERVER_ERROR,
            E::Busy | E::Stopped => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string()).fix(error.fix())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let reason = Reason(self.message.as_str().into());
        let body = ErrorBody {
            error: self.message,
            fix: self.fix.as_deref().map(FixReport::from),
        };
        (self.status, Extension(reason), Json(body)).into_response()
    }
}
