//! `hvsock vm shutdown`: an orderly end, asked for.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use hvsock_address::PartitionRef;
use hvsock_control::{Contact, Partition, PartitionState};
use hvsock_services::host::shutdown::{Action, begin};
use hvsock_services::link::Target;

use super::super::partition::{Named, Partitions};
use super::super::wait::{seconds, standing, until};
use crate::failure::Failure;
use crate::os::linux::guest_services;

/// Power the guest off in an orderly way, or reboot it, and wait until that is done
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hvsock vm shutdown web
  hvsock vm shutdown web --reboot --reason 'a new kernel'")]
pub struct Shutdown {
    #[command(flatten)]
    named: Named,
    /// Have it start again, and wait until its agent is heard
    #[arg(long)]
    reboot: bool,
    /// Do not let it wait for its programs
    #[arg(long)]
    force: bool,
    /// Give up waiting after so many seconds; 0 does not wait at all
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0, value_parser = seconds)]
    timeout: f64,
    /// Why, for the guest's log
    #[arg(long, value_name = "TEXT", default_value = "an operator asked for it")]
    reason: String,
}

impl Shutdown {
    pub fn run(&self, vms: Partitions<'_>) -> Result<()> {
        let context = vms.context;
        let before = vms.find(&self.named)?;
        let name = &before.name;
        let target = Target::new(context.endpoint(), PartitionRef::Id(before.id));
        let action = match self.reboot {
            true => Action::Reboot,
            false => Action::PowerOff,
        };
        let begun = begin(&target, action, self.force, &self.reason);
        let by = guest_services::block_on(begun)?;
        let by = by.map_err(|error| guest_services::failure(context, error))?;
        context.note(&format!("`{name}` goes down by: {by}"));
        if self.timeout == 0.0 {
            return Ok(());
        }
        let limit = Duration::from_secs_f64(self.timeout);
        let boot = boot_id(&before);
        let done = until(vms, &self.named, limit, |now| match self.reboot {
            true => rebooted(now, boot.as_deref()),
            false => now.state == PartitionState::Off,
        });
        match done? {
            Ok(_) => Ok(()),
            Err(now) => {
                let what = match self.reboot {
                    true => "has not come back",
                    false => "is not off",
                };
                let (seconds, standing) = (self.timeout, standing(&now));
                let sentence = format!("{name} {what} after {seconds} s: it is {standing}");
                let help = match self.force {
                    true => "end its VMM",
                    false => "`--force` does not wait for the guest's programs",
                };
                Err(Failure::new(sentence).help(help).into())
            }
        }
    }
}

/// Which boot of the guest's kernel its agent speaks of.
fn boot_id(partition: &Partition) -> Option<String> {
    let report = partition.guest.as_ref()?.report.as_ref()?;
    Some(report.facts.boot_id.clone()).filter(|id| !id.is_empty())
}

/// Its agent is heard, from another boot than before. That it was off for a moment may not be seen.
fn rebooted(now: &Partition, before: Option<&str>) -> bool {
    let heard = now
        .guest
        .as_ref()
        .is_some_and(|guest| guest.contact == Contact::Ok);
    heard && boot_id(now).is_some_and(|boot| Some(boot.as_str()) != before)
}
