//! The host side of the key-value pair service.
//!
//! The guest's replies are validated against the interface's limits here, so callers need not check
//! them again.

use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::within;
use crate::catalog::KVP;
use crate::link::{CallError, Target};
use crate::machine::qualified_name;
use crate::protocol::kvp::{PAIRS, check_key, check_value};
use crate::wire::kvp::kvp_client::KvpClient;
use crate::wire::kvp::{
    GetRequest, ListRequest, SetRequest, UnsetRequest, WatchEvent, WatchRequest, watch_event::Kind,
};
pub use crate::wire::kvp::{Pair, Pool};

/// How long a reply may take: longer than the guest waits for its disk.
const TIMEOUT: Duration = Duration::from_secs(15);

/// All pools, in the order of their numbers.
pub const POOLS: [Pool; 4] = [Pool::External, Pool::Guest, Pool::Auto, Pool::AutoExternal];

/// A client for the pools of one guest.
#[derive(Clone, Debug)]
pub struct Pools {
    client: KvpClient<Channel>,
}

impl Pools {
    /// Connects to the agent of the partition.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the guest's service cannot be reached.
    pub async fn connect(target: &Target) -> Result<Self, CallError> {
        let client = KvpClient::new(target.channel(&KVP).await?);
        Ok(Self { client })
    }

    /// Returns the value of a key, or `None` if the pool does not have it.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the call fails, takes more than 15 seconds, or the value exceeds the limits.
    pub async fn get(&mut self, pool: Pool, key: &str) -> Result<Option<String>, CallError> {
        let request = GetRequest {
            pool: pool.into(),
            key: key.to_owned(),
        };
        let value = match within(TIMEOUT, self.client.get(request)).await {
            Ok(reply) => reply.value,
            Err(CallError::Status(status)) if status.code() == Code::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        check_value(&value).map_err(violation)?;
        Ok(Some(value))
    }

    /// Returns all pairs of one pool.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the call fails, takes more than 15 seconds, or the reply exceeds the limits.
    pub async fn list(&mut self, pool: Pool) -> Result<Vec<Pair>, CallError> {
        let request = ListRequest { pool: pool.into() };
        let pairs = within(TIMEOUT, self.client.list(request)).await?.pairs;
        if pairs.len() > PAIRS {
            return Err(violation(format_args!("{} pairs in one pool", pairs.len())));
        }
        pairs.iter().try_for_each(check)?;
        Ok(pairs)
    }

    /// Sets pairs in one of the host's pools: all or none.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the guest refuses, the call fails or takes more than 15 seconds.
    pub async fn set(&mut self, pool: Pool, pairs: Vec<Pair>) -> Result<(), CallError> {
        let pool = pool.into();
        let request = SetRequest { pool, pairs };
        within(TIMEOUT, self.client.set(request)).await?;
        Ok(())
    }

    /// Removes keys from one of the host's pools. Returns how many of them existed.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the guest refuses, the call fails or takes more than 15 seconds.
    pub async fn unset(&mut self, pool: Pool, keys: Vec<String>) -> Result<u32, CallError> {
        let pool = pool.into();
        let request = UnsetRequest { pool, keys };
        Ok(within(TIMEOUT, self.client.unset(request)).await?.removed)
    }

    /// Watches these pools, or all if `pools` is empty, for changes of one key, or of all if `key`
    /// is `None`. A snapshot of the existing pairs comes first.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the call fails or is not answered within 15 seconds.
    pub async fn watch(&mut self, pools: &[Pool], key: Option<&str>) -> Result<Watch, CallError> {
        let request = WatchRequest {
            pools: pools.iter().map(|pool| (*pool).into()).collect(),
            key: key.map(str::to_owned),
        };
        let events = within(TIMEOUT, self.client.watch(request)).await?;
        Ok(Watch { events })
    }
}

/// A stream of changes to a guest's pools.
#[derive(Debug)]
pub struct Watch {
    events: Streaming<WatchEvent>,
}

/// An event of a [`Watch`].
#[derive(Clone, Debug, PartialEq)]
pub enum KvpEvent {
    /// The pair exists, or has this value from now on.
    Set(Pool, Pair),
    /// The key was removed.
    Removed(Pool, String),
    /// The snapshot is complete: all pairs that existed at first have been sent.
    SnapshotEnd,
}

impl Watch {
    /// Waits for the next event, without a time limit.
    ///
    /// # Errors
    ///
    /// [`CallError`] if the guest ends the watch, the connection breaks, or an event exceeds the
    /// limits. After an error the watch is over.
    pub async fn next(&mut self) -> Result<KvpEvent, CallError> {
        let event = self.events.message().await?;
        let event = event.ok_or_else(|| Status::unavailable("the guest ended the watch"))?;
        let pool = Pool::try_from(event.pool);
        let pool = pool.map_err(|_| violation(format_args!("the unknown pool {}", event.pool)))?;
        let kind = event.kind();
        let pair = event.pair.unwrap_or_default();
        match kind {
            Kind::SnapshotEnd => return Ok(KvpEvent::SnapshotEnd),
            Kind::Unspecified => return Err(violation("an event of an unknown kind")),
            Kind::Set | Kind::Removed => check(&pair)?,
        }
        Ok(match kind {
            Kind::Removed => KvpEvent::Removed(pool, pair.key),
            _ => KvpEvent::Set(pool, pair),
        })
    }
}

fn check(pair: &Pair) -> Result<(), CallError> {
    let checked = check_key(&pair.key).and_then(|()| check_value(&pair.value));
    checked.map_err(violation)
}

/// The error for a reply that violates the limits.
fn violation(what: impl std::fmt::Display) -> CallError {
    Status::data_loss(format!("the guest's reply is invalid: {what}")).into()
}

/// The pairs that a host sets in [`Pool::AutoExternal`]: facts about itself and about the guest,
/// under Hyper-V's names.
pub fn facts_of_host(guest: &str, id: &str) -> Vec<Pair> {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy().into_owned();
    let qualified = qualified_name();
    let facts = [
        ("HostName", &qualified),
        ("PhysicalHostName", &name),
        ("PhysicalHostNameFullyQualified", &qualified),
        ("VirtualMachineId", &id.to_owned()),
        ("VirtualMachineName", &guest.to_owned()),
    ];
    let pairs = facts.map(|(key, value)| Pair {
        key: key.to_owned(),
        value: value.clone(),
    });
    pairs.into()
}
