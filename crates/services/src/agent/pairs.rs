//! `hvsock-agent kvp`: the key-value pairs for programs in the guest. It works on the files, and so
//! without an agent that runs.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Subcommand, ValueEnum};

use crate::guest::kvp::facts;
use crate::guest::kvp::files::Files;
use crate::guest::kvp::pool::Pool;
use crate::wire::kvp::Pool as Which;

/// Read and write key-value pairs, as a program in the guest
#[derive(Debug, Subcommand)]
pub(super) enum Pairs {
    /// Print the value of a key that the host has set
    Get(Get),
    /// Set a value in this guest's pool, for the host to read
    Set(Set),
    /// Remove keys from this guest's pool
    Unset(Unset),
    /// List the pairs of a pool
    List(List),
}

/// A pool.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Name {
    /// The host's
    External,
    /// Of programs in this guest
    Guest,
    /// Facts of this guest
    Auto,
    /// Facts of the host
    AutoExternal,
}

#[derive(Debug, Args)]
pub(super) struct Get {
    /// The key
    key: String,
    /// Of this pool; otherwise the host's pair, and else the fact of the host
    #[arg(long)]
    pool: Option<Name>,
}

#[derive(Debug, Args)]
pub(super) struct Set {
    /// The key, of at most 511 bytes
    key: String,
    /// The value, of at most 2047 bytes
    #[arg(allow_hyphen_values = true)]
    value: String,
}

#[derive(Debug, Args)]
pub(super) struct Unset {
    /// The keys
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// The pool
    #[arg(long, default_value = "external")]
    pool: Name,
}

impl Name {
    fn which(self) -> Which {
        match self {
            Self::External => Which::External,
            Self::Guest => Which::Guest,
            Self::Auto => Which::Auto,
            Self::AutoExternal => Which::AutoExternal,
        }
    }
}

impl Pairs {
    pub(super) fn run(self, folder: Option<PathBuf>) -> Result<()> {
        let files = Files::at(folder);
        match self {
            Self::Get(Get { key, pool }) => {
                let pools = match pool {
                    Some(pool) => vec![pool],
                    None => vec![Name::External, Name::AutoExternal],
                };
                for pool in pools {
                    if let Some(value) = read(&files, pool)?.get(&key) {
                        anstream::println!("{value}");
                        return Ok(());
                    }
                }
                bail!("there is no key `{key}`");
            }
            Self::Set(Set { key, value }) => {
                files.change(Which::Guest, |pool| pool.set(&key, &value))?;
            }
            Self::Unset(Unset { keys }) => {
                files.change(Which::Guest, |pool| {
                    keys.iter().try_for_each(|key| pool.unset(key).map(drop))
                })?;
            }
            Self::List(List { pool }) => {
                for (key, value) in read(&files, pool)?.iter() {
                    anstream::println!("{}\t{}", shown(key), shown(value));
                }
            }
        }
        Ok(())
    }
}

fn read(files: &Files, pool: Name) -> Result<Pool> {
    Ok(match pool {
        Name::Auto => facts::gather(),
        pool => files.read(pool.which())?,
    })
}

/// One field of one line, whatever is in it.
fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().map(plain).collect()
}
