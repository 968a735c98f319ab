//! `hvsock vm shutdown`: powers a guest off or reboots it, and waits.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use hvsock_address::PartitionRef;
use hvsock_control::{AgentState, Partition, PartitionState};
use hvsock_services::host::shutdown::{Action, begin};
use hvsock_services::link::Target;

use super::super::partition::{Named, Partitions};
use super::super::wait::{current_state, seconds, until};
use crate::failure::Failure;
use crate::os::linux::guest_services;

/// Shut a guest down or reboot it, and wait until that is done
#[derive(Debug, Args)]
pub struct Shutdown {
    #[command(flatten)]
    named: Named,
    /// Reboot it, and wait until its agent is connected
    #[arg(long)]
    reboot: bool,
    /// Do not wait for the guest's programs
    #[arg(long)]
    force: bool,
    /// Give up after this many seconds; 0 does not wait
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0, value_parser = seconds)]
    timeout: f64,
    /// The reason for the guest's log
    #[arg(long, value_name = "TEXT", default_value = "requested by the operator")]
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
        let name_of_action = match self.reboot {
            true => "reboot",
            false => "shutdown",
        };
        let force = if self.force { "--force " } else { "" };
        let target = target.describe(name_of_action, format!("{force}{}", self.reason));
        let begun = begin(&target, action, self.force, &self.reason);
        let by = guest_services::block_on(begun)?;
        let by = by.map_err(|error| guest_services::failure(context, error))?;
        context.note(&format!("`{name}` is shutting down: {by}"));
        if self.timeout == 0.0 {
            return Ok(());
        }
        let limit = Duration::from_secs_f64(self.timeout);
        let boot = boot_id(&before);
        let reached = until(vms, &self.named, limit, |now| match self.reboot {
            true => rebooted(now, boot.as_deref()),
            false => now.state == PartitionState::Off,
        });
        match reached? {
            Ok(_) => Ok(()),
            Err(now) => {
                let what = match self.reboot {
                    true => "has not rebooted",
                    false => "is not off",
                };
                let (seconds, state) = (self.timeout, current_state(&now));
                let message = format!("{name} {what} after {seconds} s: it is {state}");
                let help = match self.force {
                    true => "stop its VMM",
                    false => "use --force, which does not wait for the guest's programs",
                };
                Err(Failure::new(message).help(help).into())
            }
        }
    }
}

/// The boot id that the guest's agent reported.
fn boot_id(partition: &Partition) -> Option<String> {
    let report = partition.guest.as_ref()?.report.as_ref()?;
    Some(report.facts.boot_id.clone()).filter(|id| !id.is_empty())
}

/// Whether the agent is connected with another boot id. The state `off` may be too short to see.
fn rebooted(now: &Partition, before: Option<&str>) -> bool {
    let connected = now
        .guest
        .as_ref()
        .is_some_and(|guest| guest.agent == AgentState::Connected);
    connected && boot_id(now).is_some_and(|boot| Some(boot.as_str()) != before)
}
