//! The host side of freeze and thaw.

use std::time::Duration;

use tonic::Status;
use tonic::transport::Channel;

use super::within;
use crate::catalog::FREEZE;
use crate::link::{CallError, Target};
use crate::wire::freeze::freeze_client::FreezeClient;
pub use crate::wire::freeze::thaw_reply::Outcome;
pub use crate::wire::freeze::{FreezeReply, ThawReply};
use crate::wire::freeze::{FreezeRequest, ThawRequest};

/// The longest time limit of a freeze.
pub const MAX_LIMIT: Duration = Duration::from_secs(300);

/// How much longer than its time limit a freeze call may take: the hooks run first.
const HOOKS: Duration = Duration::from_secs(60);

/// How long a thaw call may take.
const THAW: Duration = Duration::from_secs(30);

/// The most filesystems in one freeze.
const MAX_FILESYSTEMS: usize = 256;

/// A client that freezes and thaws a guest's filesystems.
#[doc(alias = "fsfreeze")]
#[doc(alias = "quiesce")]
#[derive(Clone, Debug)]
pub struct Freezer {
    client: FreezeClient<Channel>,
}

impl Freezer {
    /// Connects to the agent of the partition.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the guest's freeze service cannot be reached.
    pub async fn connect(target: &Target) -> Result<Self, CallError> {
        let client = FreezeClient::new(target.channel(&FREEZE).await?);
        Ok(Self { client })
    }

    /// Freezes the filesystems at these mount points, or all if `mounts` is empty, for at most
    /// `limit`. When it returns, they are frozen; if it fails, none is. If the future is dropped
    /// before, the guest thaws what it has frozen.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the guest cannot freeze them, does not answer in time, or sends an invalid reply.
    pub async fn freeze(
        &mut self,
        limit: Duration,
        mounts: Vec<String>,
    ) -> Result<FreezeReply, CallError> {
        // 0 would mean the default limit.
        let limit_ms = limit.as_millis().clamp(1, u32::MAX.into()) as u32;
        let request = FreezeRequest { limit_ms, mounts };
        let reply = within(limit.min(MAX_LIMIT) + HOOKS, self.client.freeze(request)).await?;
        let count = reply.frozen.len();
        if reply.id == 0
            || count == 0
            || count > MAX_FILESYSTEMS
            || reply.skipped.len() > MAX_FILESYSTEMS
        {
            let text = "the guest's reply to a freeze is invalid";
            return Err(Status::data_loss(text).into());
        }
        Ok(reply)
    }

    /// Thaws the freeze with this id, or the active one if `id` is 0. Only [`Outcome::Thawed`]
    /// means that everything was frozen until this call.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the call fails or is not answered within 30 seconds.
    pub async fn thaw(&mut self, id: u64) -> Result<ThawReply, CallError> {
        let mut reply = within(THAW, self.client.thaw(ThawRequest { id })).await?;
        reply.failures.truncate(MAX_FILESYSTEMS);
        Ok(reply)
    }
}
