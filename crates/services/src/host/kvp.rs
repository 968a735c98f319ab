//! Data exchange, the host's half.
//!
//! A guest may say whatever it likes, so its answers are held to the interface's limits here:
//! whoever uses this need not check them again.

use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::within;
use crate::catalog::KVP;
use crate::guest::kvp::facts;
use crate::guest::kvp::pool::{PAIRS, check_key, check_value};
use crate::link::{CallError, Target};
use crate::wire::kvp::kvp_client::KvpClient;
use crate::wire::kvp::{
    GetRequest, ListRequest, SetRequest, UnsetRequest, WatchEvent, WatchRequest, watch_event::Kind,
};
pub use crate::wire::kvp::{Pair, Pool};

/// How long one answer may take: longer than a guest waits for its disk.
const PATIENCE: Duration = Duration::from_secs(15);

/// All pools, in the order of their numbers.
pub const POOLS: [Pool; 4] = [Pool::External, Pool::Guest, Pool::Auto, Pool::AutoExternal];

/// A guest's pools.
#[derive(Clone, Debug)]
pub struct Pools {
    client: KvpClient<Channel>,
}

impl Pools {
    /// Those of the partition behind `target`.
    pub async fn connect(target: &Target) -> Result<Self, CallError> {
        let client = KvpClient::new(target.channel(&KVP).await?);
        Ok(Self { client })
    }

    /// The value of a key, if the pool has it.
    pub async fn get(&mut self, pool: Pool, key: &str) -> Result<Option<String>, CallError> {
        let request = GetRequest {
            pool: pool.into(),
            key: key.to_owned(),
        };
        let value = match within(PATIENCE, self.client.get(request)).await {
            Ok(reply) => reply.value,
            Err(CallError::Status(status)) if status.code() == Code::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        check_value(&value).map_err(lie)?;
        Ok(Some(value))
    }

    /// All pairs of one pool.
    pub async fn list(&mut self, pool: Pool) -> Result<Vec<Pair>, CallError> {
        let request = ListRequest { pool: pool.into() };
        let pairs = within(PATIENCE, self.client.list(request)).await?.pairs;
        if pairs.len() > PAIRS {
            return Err(lie(format_args!("{} pairs in one pool", pairs.len())));
        }
        pairs.iter().try_for_each(check)?;
        Ok(pairs)
    }

    /// Sets pairs of one of the host's pools, all or none.
    pub async fn set(&mut self, pool: Pool, pairs: Vec<Pair>) -> Result<(), CallError> {
        let pool = pool.into();
        let request = SetRequest { pool, pairs };
        within(PATIENCE, self.client.set(request)).await?;
        Ok(())
    }

    /// Removes keys of one of the host's pools, and says how many of them were there.
    pub async fn unset(&mut self, pool: Pool, keys: Vec<String>) -> Result<u32, CallError> {
        let pool = pool.into();
        let request = UnsetRequest { pool, keys };
        Ok(within(PATIENCE, self.client.unset(request)).await?.removed)
    }

    /// Hears of these pools from now on, or of all if none is named, and of one key or of all.
    pub async fn watch(&mut self, pools: &[Pool], key: Option<&str>) -> Result<Watch, CallError> {
        let request = WatchRequest {
            pools: pools.iter().map(|pool| (*pool).into()).collect(),
            key: key.map(str::to_owned),
        };
        let events = within(PATIENCE, self.client.watch(request)).await?;
        Ok(Watch { events })
    }
}

/// What a guest tells of its pools, one by one.
#[derive(Debug)]
pub struct Watch {
    events: Streaming<WatchEvent>,
}

/// One thing told.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// This pair is there, or has this value from now on.
    Set(Pool, Pair),
    /// This key is gone.
    Removed(Pool, String),
    /// Everything that was there at first has been told.
    Everything,
}

impl Watch {
    /// Waits for the next one, however long it takes. An error is the end.
    pub async fn next(&mut self) -> Result<Told, CallError> {
        let event = self.events.message().await?;
        let event = event.ok_or_else(|| Status::unavailable("the guest ended the watch"))?;
        let pool = Pool::try_from(event.pool);
        let pool = pool.map_err(|_| lie(format_args!("a pool {}", event.pool)))?;
        let kind = event.kind();
        let pair = event.pair.unwrap_or_default();
        match kind {
            Kind::Told => return Ok(Told::Everything),
            Kind::Unspecified => return Err(lie("an event of no known kind")),
            Kind::Set | Kind::Removed => check(&pair)?,
        }
        Ok(match kind {
            Kind::Removed => Told::Removed(pool, pair.key),
            _ => Told::Set(pool, pair),
        })
    }
}

fn check(pair: &Pair) -> Result<(), CallError> {
    let checked = check_key(&pair.key).and_then(|()| check_value(&pair.value));
    checked.map_err(lie)
}

/// The failure that a guest's answer beyond the limits is.
fn lie(what: impl std::fmt::Display) -> CallError {
    Status::data_loss(format!("the guest's answer is not to be believed: {what}")).into()
}

/// What a host tells its guests of itself and of them in [`Pool::AutoExternal`], under the names
/// that Hyper-V has.
pub fn facts_of_host(guest: &str, id: &str) -> Vec<Pair> {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy().into_owned();
    let qualified = facts::qualified_name();
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
