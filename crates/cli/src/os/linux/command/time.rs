//! `hvsock vm time`: the offset of a guest's clock from this machine's.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use hvsock_control::{AgentState, GuestClock, GuestCommand, Partition};
use serde::Serialize;

use super::guest;
use super::partition::{Named, Partitions};
use super::wait::{current_state, until};
use crate::failure::Failure;
use crate::output::{self, Json};

/// The longest wait for a guest's measurement.
const SYNC_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub struct Time {
    #[command(flatten)]
    named: Named,
    /// Measure and correct the guest's clock now
    #[arg(long)]
    sync: bool,
    #[command(flatten)]
    json: Json,
}

/// The output of `--json`.
#[derive(Debug, Serialize)]
struct Shown {
    name: String,
    clock: GuestClock,
}

impl Time {
    pub fn run(&self, partitions: Partitions<'_>) -> Result<()> {
        let found = partitions.find(&self.named)?;
        let name = found.name.to_string();
        let mut measured = known(&found).map(|(clock, _)| clock);
        if self.sync {
            let started = Instant::now();
            let client = partitions.context.client()?;
            client.send_guest_command(&found.id.into(), GuestCommand::SyncClock)?;
            let newer = |now: &Partition| {
                known(now).is_some_and(|(_, age)| age < started.elapsed().as_secs_f64())
            };
            let measured_now = until(partitions, &self.named, SYNC_TIMEOUT, newer)?;
            let Ok(now) = measured_now else {
                let seconds = SYNC_TIMEOUT.as_secs();
                let message =
                    format!("cannot synchronize {name}: no measurement within {seconds} s");
                let help = format!("hvsock vm integration {name}");
                let help = partitions.context.command(&help);
                return Err(Failure::new(message).help(help).into());
            };
            measured = known(&now).map(|(clock, _)| clock);
        }
        let Some(clock) = measured else {
            let message = format!(
                "the clock of {name} is unknown: it is {}",
                current_state(&found)
            );
            return Err(Failure::new(message).into());
        };
        if self.json.json {
            return output::json(&Shown { name, clock });
        }
        output::line(guest::clock(&clock))
    }
}

/// The clock of a guest whose agent is connected, and the age of its measurement in seconds.
fn known(partition: &Partition) -> Option<(GuestClock, f64)> {
    let guest = partition.guest.as_ref()?;
    let mut clock = guest.report.as_ref()?.clock?;
    clock.age_seconds += guest.last_seen_seconds?;
    (guest.agent == AgentState::Connected).then_some((clock, clock.age_seconds))
}
