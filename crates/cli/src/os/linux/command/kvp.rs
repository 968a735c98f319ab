//! `hvsock kvp`: key-value pairs exchanged with a guest.

use std::ffi::OsStr;
use std::io::{IsTerminal as _, stdout};

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use hvsock_services::host::kvp::{self, KvpEvent, POOLS, Pair, Pools};
use hvsock_services::link::CallError;
use serde::Serialize;

use crate::context::Context;
use crate::failure::{Failure, printable};
use crate::os::Partition;
use crate::os::linux::guest_services::{block_on, failure, target_for};
use crate::os::linux::output::{self, Json};
use crate::table::Columns;

/// Exchange key-value pairs with a guest
#[derive(Debug, Subcommand)]
pub enum Kvp {
    Get(Get),
    Set(Set),
    Unset(Unset),
    List(List),
    Watch(Watch),
}

/// A pool on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Pool {
    /// Written by the host
    External,
    /// Written by programs in the guest
    Guest,
    /// Facts about the guest
    Auto,
    /// Facts about the host
    AutoExternal,
}

/// Print the value of a key
#[derive(Debug, Args)]
pub struct Get {
    /// The virtual machine or container, by name or GUID
    vm: Partition,
    /// The key
    key: String,
    /// Search this pool only [default: all, the guest's first]
    #[arg(long)]
    pool: Option<Pool>,
}

/// Set a value that the guest can read
#[derive(Debug, Args)]
pub struct Set {
    /// The virtual machine or container, by name or GUID
    vm: Partition,
    /// The key, of at most 511 bytes
    key: String,
    /// The value, of at most 2047 bytes
    #[arg(allow_hyphen_values = true)]
    value: String,
}

/// Remove keys that the host has set
#[derive(Debug, Args)]
pub struct Unset {
    /// The virtual machine or container, by name or GUID
    vm: Partition,
    /// The keys
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
}

/// List key-value pairs
#[derive(Debug, Args)]
pub struct List {
    /// The virtual machine or container, by name or GUID
    vm: Partition,
    /// List this pool only
    #[arg(long)]
    pool: Option<Pool>,
    #[command(flatten)]
    json: Json,
}

/// Print key-value pairs, and then each change
#[derive(Debug, Args)]
pub struct Watch {
    /// The virtual machine or container, by name or GUID
    vm: Partition,
    /// Watch this key only
    key: Option<String>,
    /// Watch this pool only
    #[arg(long)]
    pool: Option<Pool>,
    /// Print JSON, one line for each pair and change
    #[arg(long)]
    json: bool,
}

/// The output of `--json`.
#[derive(Debug, Serialize)]
struct JsonLine<'a> {
    pool: Pool,
    key: &'a str,
    /// `None` for a key that was removed.
    value: Option<&'a str>,
}

impl Kvp {
    pub fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Get(get) => get.run(context),
            Self::Set(set) => set.run(context),
            Self::Unset(unset) => unset.run(context),
            Self::List(list) => list.run(context),
            Self::Watch(watch) => watch.run(context),
        }
    }
}

/// Connects to a guest's pools and uses them.
fn with<T>(
    context: &Context,
    vm: &Partition,
    (action, words): (&'static str, &[&str]),
    act: impl AsyncFnOnce(Pools) -> Result<T, CallError>,
) -> Result<T> {
    let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
    let target = target_for(context, vm, action, &words)?;
    let done = block_on(async { act(Pools::connect(&target).await?).await })?;
    done.map_err(|error| failure(context, error))
}

impl Get {
    fn run(self, context: &Context) -> Result<()> {
        let Self { vm, key, pool } = self;
        // The guest's pools first: facts about the guest are requested most.
        let order = [Pool::Auto, Pool::Guest, Pool::External, Pool::AutoExternal];
        let order = pool.map_or(order.to_vec(), |pool| vec![pool]);
        let found = with(context, &vm, ("kvp_get", &[&key]), async |mut pools| {
            for pool in order {
                if let Some(value) = pools.get(pool.into(), &key).await? {
                    return Ok(Some(value));
                }
            }
            Ok(None)
        })?;
        match found {
            // A program gets the value unchanged.
            Some(value) if !stdout().is_terminal() => {
                output::bytes(format!("{value}\n").as_bytes())
            }
            Some(value) => output::line(printable(&value)),
            None => Err(Failure::new(format!("{vm} has no key `{key}`"))
                .help(context.command(&format!("hvsock kvp list {vm}")))
                .into()),
        }
    }
}

impl Set {
    fn run(self, context: &Context) -> Result<()> {
        let Self { vm, key, value } = self;
        // The value may be secret.
        let keys = [key.clone()];
        let keys = keys.each_ref().map(String::as_str);
        with(context, &vm, ("kvp_set", &keys), async |mut pools| {
            pools
                .set(kvp::Pool::External, vec![Pair { key, value }])
                .await
        })
    }
}

impl Unset {
    fn run(self, context: &Context) -> Result<()> {
        let Self { vm, keys } = self;
        let count = keys.len();
        let names = keys.clone();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let removed = with(context, &vm, ("kvp_unset", &names), async |mut pools| {
            pools.unset(kvp::Pool::External, keys).await
        })?;
        if (removed as usize) < count {
            context.note(&format!("{removed} of {count} keys existed"));
        }
        Ok(())
    }
}

impl List {
    fn run(self, context: &Context) -> Result<()> {
        let Self { vm, pool, json } = self;
        let wanted = pool.map_or(POOLS.to_vec(), |pool| vec![pool.into()]);
        let listed = with(context, &vm, ("kvp_list", &[]), async |mut pools| {
            let mut listed = Vec::new();
            for pool in wanted {
                let pairs = pools.list(pool).await?.into_iter();
                listed.extend(pairs.map(|pair| (Pool::from(pool), pair)));
            }
            Ok(listed)
        })?;
        if json.json {
            let lines = listed.iter().map(|(pool, pair)| JsonLine {
                pool: *pool,
                key: &pair.key,
                value: Some(&pair.value),
            });
            return output::json(&lines.collect::<Vec<_>>());
        }
        let mut table = Columns::new(&["pool", "key", "value"], "no pairs");
        for (pool, pair) in listed {
            table.row([pool.word().to_owned(), pair.key, pair.value]);
        }
        table.print()
    }
}

impl Watch {
    fn run(self, context: &Context) -> Result<()> {
        let wanted: Vec<kvp::Pool> = self.pool.into_iter().map(Into::into).collect();
        let print = |pool: kvp::Pool, key: &str, value: Option<&str>| {
            let pool = Pool::from(pool);
            match (self.json, value) {
                (true, value) => output::json_line(&JsonLine { pool, key, value }),
                (false, Some(value)) => line(&format!("set {} {key} {value}", pool.word())),
                (false, None) => line(&format!("removed {} {key}", pool.word())),
            }
        };
        let key = self.key.as_deref();
        let words: Vec<&OsStr> = key.iter().map(OsStr::new).collect();
        let target = target_for(context, &self.vm, "kvp_watch", &words)?;
        block_on(async {
            let mut pools = Pools::connect(&target)
                .await
                .map_err(|error| failure(context, error))?;
            let watch = pools.watch(&wanted, key).await;
            let mut watch = watch.map_err(|error| failure(context, error))?;
            loop {
                match watch
                    .next()
                    .await
                    .map_err(|error| failure(context, error))?
                {
                    KvpEvent::Set(pool, pair) => print(pool, &pair.key, Some(&pair.value))?,
                    KvpEvent::Removed(pool, key) => print(pool, &key, None)?,
                    KvpEvent::SnapshotEnd => {}
                }
            }
        })?
    }
}

/// Prints one line. Line breaks in the text are escaped.
fn line(text: &str) -> Result<()> {
    output::line(printable(text))
}

impl Pool {
    fn word(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Guest => "guest",
            Self::Auto => "auto",
            Self::AutoExternal => "auto-external",
        }
    }
}

impl From<Pool> for kvp::Pool {
    fn from(pool: Pool) -> Self {
        match pool {
            Pool::External => Self::External,
            Pool::Guest => Self::Guest,
            Pool::Auto => Self::Auto,
            Pool::AutoExternal => Self::AutoExternal,
        }
    }
}

impl From<kvp::Pool> for Pool {
    fn from(pool: kvp::Pool) -> Self {
        match pool {
            kvp::Pool::External => Self::External,
            kvp::Pool::Guest => Self::Guest,
            kvp::Pool::Auto => Self::Auto,
            kvp::Pool::AutoExternal => Self::AutoExternal,
        }
    }
}
