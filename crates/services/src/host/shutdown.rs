//! Asking a guest to go down.

use std::time::Duration;

use tokio::time::timeout;
use tonic::Status;

use crate::catalog::SHUTDOWN;
use crate::link::{CallError, Target};
use crate::wire::shutdown::ShutdownRequest;
use crate::wire::shutdown::shutdown_client::ShutdownClient;

pub use crate::wire::shutdown::Action;

/// How long a guest may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of an answer.
const LARGEST: usize = 4096;

/// Has the guest begin to go down, and returns how it says that it does so. With `force` it does not
/// wait for programs. The reason, of at most 1,024 bytes, is for the guest's log.
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
    let reply = timeout(PATIENCE, begun).await;
    let reply = reply.map_err(|_| Status::deadline_exceeded("the guest does not answer"))?;
    Ok(reply?.into_inner().by)
}
