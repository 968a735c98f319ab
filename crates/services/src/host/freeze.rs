//! Freeze and thaw, the host's half.

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

/// The longest time limit.
pub const LONGEST: Duration = Duration::from_secs(300);

/// How much longer than the time limit a freeze may take to be answered: its hooks run before.
const HOOKS: Duration = Duration::from_secs(60);

/// How long a thaw may take to be answered.
const THAW: Duration = Duration::from_secs(30);

/// The most filesystems of one freeze.
const MOST: usize = 256;

/// What freezes a guest's filesystems.
#[derive(Clone, Debug)]
pub struct Freezer {
    client: FreezeClient<Channel>,
}

impl Freezer {
    /// That of the partition behind `target`.
    pub async fn connect(target: &Target) -> Result<Self, CallError> {
        let client = FreezeClient::new(target.channel(&FREEZE).await?);
        Ok(Self { client })
    }

    /// Freezes the filesystems at these mount points, or all of them if there are none, for so
    /// long at the most. Once it returns they are frozen; if it fails, none is. Dropped before, it
    /// has the guest thaw what is frozen by then.
    pub async fn freeze(
        &mut self,
        limit: Duration,
        mounts: Vec<String>,
    ) -> Result<FreezeReply, CallError> {
        // A limit of nothing would be the usual one.
        let limit_ms = limit.as_millis().clamp(1, u32::MAX.into()) as u32;
        let request = FreezeRequest { limit_ms, mounts };
        let reply = within(limit.min(LONGEST) + HOOKS, self.client.freeze(request)).await?;
        let count = reply.frozen.len();
        if reply.id == 0 || count == 0 || count > MOST || reply.skipped.len() > MOST {
            let text = "the guest's answer to a freeze is not to be believed";
            return Err(Status::data_loss(text).into());
        }
        Ok(reply)
    }

    /// Thaws what is frozen, if it is the freeze of this id (0: whichever it is). Only
    /// [`Outcome::Thawed`] says that everything was frozen until now.
    pub async fn thaw(&mut self, id: u64) -> Result<ThawReply, CallError> {
        let mut reply = within(THAW, self.client.thaw(ThawRequest { id })).await?;
        reply.failures.truncate(MOST);
        Ok(reply)
    }
}
