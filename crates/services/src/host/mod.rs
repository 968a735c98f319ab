//! The host side: what the command `hvsock` and its broker call and serve.

pub mod copy;
pub mod forward;
pub mod freeze;
pub mod heartbeat;
pub mod kvp;
pub mod notify;
mod requester;
pub mod session;
pub mod shutdown;
pub mod time;

use std::future::Future;
use std::time::Duration;

use tonic::{Response, Status};

use crate::link::CallError;

/// Waits for a reply, at most `limit`. A guest may never answer.
pub(crate) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => {
            let text = format!(
                "timed out: the guest did not answer within {} s",
                limit.as_secs()
            );
            Err(Status::deadline_exceeded(text).into())
        }
    }
}
