//! `hvsock upgrade`: replaces the running broker by its program on disk, without a connection noticing.

use anyhow::Result;
use clap::Args;
use hvsock_control::{NewUpgrade, Upgrade as Upgraded};

use crate::context::Context;
use crate::output::{self, Json};

/// Replace the running broker by its program on disk; all connections, VMs and containers go on
///
/// The broker starts the program at the path that it was started from, with its own arguments, and hands over all
/// that it has. If anything fails, it goes on as if nothing had been.
#[derive(Debug, Args)]
pub struct Upgrade {
    /// Do everything but the last step: the running broker goes on, after a moment's standstill
    #[arg(long)]
    dry_run: bool,
    /// How many milliseconds all traffic may stand still before the running broker goes on [default: 5000]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    standstill_limit: Option<u64>,
    #[command(flatten)]
    json: Json,
}

impl Upgrade {
    pub fn run(self, context: &Context) -> Result<()> {
        let done = context.client()?.upgrade(&NewUpgrade {
            dry_run: self.dry_run,
            standstill_limit_ms: self.standstill_limit,
        })?;
        if self.json.json {
            return output::json(&done);
        }
        output::line(summary(&done))
    }
}

fn summary(done: &Upgraded) -> String {
    let Upgraded {
        dry_run,
        from_version,
        to_version,
        pid,
        standstill_ms,
        connections,
        vms,
        containers,
        listeners,
        descriptors: _,
        state_bytes: _,
    } = done;
    let count = |number: &usize, one: &str| match number {
        1 => format!("1 {one}"),
        _ => format!("{number} {one}s"),
    };
    let what = [
        count(connections, "connection"),
        count(listeners, "listener"),
        count(vms, "VM"),
        count(containers, "container"),
    ]
    .join(", ");
    match dry_run {
        true => format!(
            "hvsock {to_version} can take over from hvsock {from_version}, which goes on: {what}; \
             standstill {standstill_ms:.1} ms"
        ),
        false => format!(
            "upgraded from hvsock {from_version} to {to_version}, process {pid}: {what}; standstill \
             {standstill_ms:.1} ms"
        ),
    }
}
