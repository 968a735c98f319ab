//! The error responses that operations share, for the OpenAPI document.

#![expect(
    dead_code,
    reason = "types for utoipa; handlers respond with `ApiError`"
)]

use utoipa::IntoResponses;

use crate::model::ErrorBody;

/// The path, query or body is invalid.
#[derive(IntoResponses)]
#[response(status = 400, description = "invalid request")]
pub(super) struct Invalid(ErrorBody);

/// The caller may not change the broker's state.
#[derive(IntoResponses)]
#[response(status = 403, description = "not root or the broker's user")]
pub(super) struct Forbidden(ErrorBody);

/// What the path names does not exist.
#[derive(IntoResponses)]
#[response(status = 404, description = "not found")]
pub(super) struct NotFound(ErrorBody);

/// The body exceeds the operation's limit.
#[derive(IntoResponses)]
#[response(status = 413, description = "the body is too large")]
pub(super) struct TooLarge(ErrorBody);

/// A limit on concurrent requests is reached.
#[derive(IntoResponses)]
#[response(status = 503, description = "busy; try again")]
pub(super) struct Busy(ErrorBody);
