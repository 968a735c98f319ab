//! `hvsock-agent kvp`: key-value pairs for programs in the guest. It works on the pool files and
//! does not need a running agent.

use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use hvsock_text::printable;

use crate::guest::kvp::facts;
use crate::guest::kvp::files::Files;
use crate::guest::kvp::pool::Pool;
use crate::wire::kvp::Pool as WirePool;

/// Read and write key-value pairs from inside the guest
#[derive(Debug, Subcommand)]
pub(super) enum Pairs {
    /// Print the value of a key: one that the host has set, or a fact about the host
    Get(Get),
    /// Set a value in the guest pool, for the host to read
    Set(Set),
    /// Remove keys from the guest pool
    Unset(Unset),
    /// List the pairs of a pool
    List(List),
}

/// The pool on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PoolName {
    /// Pairs that the host has set
    External,
    /// Pairs that programs in this guest have set
    Guest,
    /// Facts about this guest
    Auto,
    /// Facts about the host
    AutoExternal,
}

#[derive(Debug, Args)]
pub(super) struct Get {
    /// Key to look up
    key: String,
    /// Pool to read; without it, the external pool and then the auto-external pool
    #[arg(long)]
    pool: Option<PoolName>,
}

#[derive(Debug, Args)]
pub(super) struct Set {
    /// Key, 1 to 511 bytes
    key: String,
    /// Value, at most 2047 bytes
    #[arg(allow_hyphen_values = true)]
    value: String,
}

#[derive(Debug, Args)]
pub(super) struct Unset {
    /// Keys to remove
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// Pool to list
    #[arg(long, default_value = "external")]
    pool: PoolName,
}

impl PoolName {
    fn pool(self) -> WirePool {
        match self {
            Self::External => WirePool::External,
            Self::Guest => WirePool::Guest,
            Self::Auto => WirePool::Auto,
            Self::AutoExternal => WirePool::AutoExternal,
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
                    None => vec![PoolName::External, PoolName::AutoExternal],
                };
                for pool in pools {
                    if let Some(value) = read(&files, pool)?.get(&key) {
                        // A program gets the value unchanged.
                        return match io::stdout().is_terminal() {
                            true => print(&format!("{}\n", printable(value))),
                            false => print(&format!("{value}\n")),
                        };
                    }
                }
                bail!(
                    "no key `{key}`; `hvsock-agent kvp list` shows the keys that the host has set"
                );
            }
            Self::Set(Set { key, value }) => {
                files.change(WirePool::Guest, |pool| pool.set(&key, &value))?;
            }
            Self::Unset(Unset { keys }) => {
                files.change(WirePool::Guest, |pool| {
                    keys.iter().try_for_each(|key| pool.unset(key).map(drop))
                })?;
            }
            Self::List(List { pool }) => {
                let mut lines = String::new();
                for (key, value) in read(&files, pool)?.iter() {
                    lines += &format!("{}\t{}\n", printable(key), printable(value));
                }
                print(&lines)?;
            }
        }
        Ok(())
    }
}

/// Writes to standard output without the standard library's `Stdout`, which reports success where a
/// write fails with `EBADF`. That the reader wants no more is no failure.
fn print(text: &str) -> Result<()> {
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    let written = stdout.and_then(|stdout| File::from(stdout).write_all(text.as_bytes()));
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write the output"),
    }
}

fn read(files: &Files, pool: PoolName) -> Result<Pool> {
    Ok(match pool {
        PoolName::Auto => facts::gather(),
        pool => files.read(pool.pool())?,
    })
}
