//! `hvsock vm time`: how a guest's clock stands to this machine's.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use hvsock_control::{Contact, GuestClock, GuestOrder, Partition};
use serde::Serialize;

use super::guest;
use super::partition::{Named, Partitions};
use super::wait::{standing, until};
use crate::failure::Failure;
use crate::output::{self, Json};

/// How long a guest may take to measure and to tell of it.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub struct Time {
    #[command(flatten)]
    named: Named,
    /// Have the guest measure and correct it now
    #[arg(long)]
    sync: bool,
    #[command(flatten)]
    json: Json,
}

/// What `--json` prints.
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
            let asked = Instant::now();
            let client = partitions.context.client()?;
            client.order_guest(&found.id.into(), GuestOrder::SyncClock)?;
            let newer = |now: &Partition| {
                known(now).is_some_and(|(_, age)| age < asked.elapsed().as_secs_f64())
            };
            let done = until(partitions, &self.named, PATIENCE, newer)?;
            let Ok(now) = done else {
                let sentence =
                    format!("{name} has not measured its clock; is the time service on?");
                return Err(Failure::new(sentence).into());
            };
            measured = known(&now).map(|(clock, _)| clock);
        }
        let Some(clock) = measured else {
            let sentence = format!(
                "the clock of {name} is not known: it is {}",
                standing(&found)
            );
            return Err(Failure::new(sentence).into());
        };
        if self.json.json {
            return output::json(&Shown { name, clock });
        }
        output::line(guest::clock(&clock))
    }
}

/// The clock of a guest that is heard, and how many seconds ago it was measured.
fn known(partition: &Partition) -> Option<(GuestClock, f64)> {
    let guest = partition.guest.as_ref()?;
    let mut clock = guest.report.as_ref()?.clock?;
    clock.age_seconds += guest.heard_seconds?;
    (guest.contact == Contact::Ok).then_some((clock, clock.age_seconds))
}
