//! Errors of requests: an HTTP status and a message.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use hvsock_fabric::{AddPartitionError, PartitionError, RegisterError};
use hvsock_registry::store::StoreError;

use crate::handle::ControlError;
use crate::model::ErrorBody;

/// An error response.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
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
            | E::Register(_)
            | E::Store(StoreError::Clash(_)) => StatusCode::CONFLICT,
            E::Invalid(_) | E::Partition(_) | E::Store(StoreError::Unstorable(_)) => {
                StatusCode::BAD_REQUEST
            }
            E::Store(_) | E::System(_) => StatusCode::INTERNAL_SERVER_ERROR,
            E::Busy | E::Stopped => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody {
            error: self.message,
        };
        (self.status, Json(body)).into_response()
    }
}
