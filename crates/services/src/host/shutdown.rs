//! Requests a guest's shutdown or reboot.

use std::time::Duration;

use tokio::time::timeout;
use tonic::Status;

use crate::catalog::SHUTDOWN;
use crate::link::{CallError, Target};
use crate::wire::shutdown::ShutdownRequest;
use crate::wire::shutdown::shutdown_client::ShutdownClient;

pub use crate::wire::shutdown::Action;

/// How long a guest may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The largest reply, in bytes.
const LARGEST: usize = 4096;

/// Requests the guest to begin its shutdown. Returns the command or call that the guest reports.
/// With `force` the guest does not wait for programs. The reason, of at most 1,024 bytes, is for
/// the guest's log.
///
/// # Errors
///
/// [`CallError`] if the guest cannot be reached, refuses, or does not answer within 10 seconds.
pub async fn begin(
    target: &Target,
    action: Action,
    force: bool,
    reason: &str,
) -> Result<String, CallError> {
    let channel = target.channel(&SHUTDOWN).await?;
    let mut client = ShutdownClient::new(channel).max_decoding_message_size(LARGEST);
    let begun = client.begin(ShutdownRequest {
        action: action.into(),
        force,
        reason: reason.to_owned(),
    });
    let reply = timeout(TIMEOUT, begun).await;
    let reply = reply.map_err(|_| {
        Status::deadline_exceeded("timed out: the guest did not answer within 10 s")
    })?;
    Ok(reply?.into_inner().by)
}
