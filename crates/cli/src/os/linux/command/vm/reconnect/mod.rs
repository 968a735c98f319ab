//! `hvsock vm reconnect`: connects a running QEMU to a broker that was restarted.

mod exchange;
mod qmp;

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock_control::{Partition, PartitionState};
use hvsock_text::printable_path;
use serde::Serialize;

use super::super::partition::{Named, Partitions};
use super::super::wait::{current_state, seconds};
use crate::failure::Failure;
use crate::format::shell_word;
use crate::output;
use exchange::{Failed, Step};
use qmp::{Qmp, Unreachable};

/// The time between two looks at the broker.
const POLL: Duration = Duration::from_millis(100);

/// The time that the guest's driver has to start, once the device is connected.
const DRIVER: Duration = Duration::from_secs(10);

/// Connect a running QEMU to a restarted broker, by exchanging its vsock device
#[derive(Debug, Args)]
pub struct Reconnect {
    #[command(flatten)]
    named: Named,
    /// The Unix socket of QEMU's monitor protocol (QMP)
    #[arg(long, value_name = "SOCKET")]
    qmp: PathBuf,
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = seconds)]
    timeout: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The output of `--json`.
#[derive(Debug, Serialize)]
struct Done<'a> {
    name: &'a str,
    state: PartitionState,
    /// Whether the device was exchanged; `false` if it was connected.
    exchanged: bool,
    steps: Vec<Began>,
    seconds: f64,
}

/// A step, and the time at which it began.
#[derive(Clone, Copy, Debug, Serialize)]
struct Began {
    step: Step,
    at_seconds: f64,
}

impl Reconnect {
    pub fn run(&self, vms: Partitions<'_>) -> Result<()> {
        let before = vms.find(&self.named)?;
        let began = Instant::now();
        let deadline = began + Duration::from_secs_f64(self.timeout);
        if is_connected(before.state) {
            return self.done(vms, &before, Vec::new(), began);
        }
        let socket = before.socket.as_ref();
        let socket = socket.context("this VM has no vhost-user device at the broker")?;
        let name = before.name.to_string();
        let mut qmp = Qmp::connect(&self.qmp, deadline).map_err(|why| self.unreachable(&why))?;
        let mut steps = Vec::new();
        let mut progress = |step| {
            vms.context.note(self.words(step));
            let at_seconds = began.elapsed().as_secs_f64();
            steps.push(Began { step, at_seconds });
        };
        exchange::exchange(&mut qmp, &name, socket, &mut progress)
            .map_err(|why| self.failed(vms, &name, &why))?;
        // Other clients can use the monitor again.
        drop(qmp);
        let after = self.connected(vms, deadline)?;
        self.done(vms, &after, steps, began)
    }

    fn words(&self, step: Step) -> &'static str {
        match step {
            Step::Find => "looking for the device",
            Step::Unplug => "asking the guest to release the device",
            Step::RemoveSocket => "waiting until the guest has released it",
            Step::AddSocket => "connecting QEMU to the broker",
            Step::Plug => "plugging the device",
        }
    }

    /// Waits until the broker has the VMM, and then for the guest's driver.
    fn connected(&self, vms: Partitions<'_>, deadline: Instant) -> Result<Partition> {
        let mut driver = None;
        loop {
            let now = vms.find(&self.named)?;
            let time = Instant::now();
            let limit = match now.state {
                PartitionState::Connected => {
                    deadline.min(*driver.get_or_insert_with(|| time + DRIVER))
                }
                _ => deadline,
            };
            if is_connected(now.state) && now.state != PartitionState::Connected {
                return Ok(now);
            }
            if time >= limit {
                if now.state == PartitionState::Connected {
                    return Ok(now);
                }
                let state = current_state(&now);
                let message = format!(
                    "QEMU has the new device, but the broker does not see it: {} is {state} after \
                     {} s",
                    now.name, self.timeout
                );
                let help = vms.context.command("hvsock status");
                return Err(Failure::new(message).help(help).into());
            }
            thread::sleep(POLL);
        }
    }

    fn done(
        &self,
        vms: Partitions<'_>,
        vm: &Partition,
        steps: Vec<Began>,
        began: Instant,
    ) -> Result<()> {
        let exchanged = !steps.is_empty();
        if self.json {
            return output::json(&Done {
                name: vm.name.as_ref(),
                state: vm.state,
                exchanged,
                steps,
                seconds: began.elapsed().as_secs_f64(),
            });
        }
        let state = current_state(vm);
        let how = match exchanged {
            true => "has a new device",
            false => "needs no exchange",
        };
        vms.context.note(&format!("`{}` {how}: {state}", vm.name));
        Ok(())
    }

    fn unreachable(&self, why: &Unreachable) -> Failure {
        let path = printable_path(&self.qmp);
        let message = format!("cannot use QEMU's monitor at {path}: {why}");
        let option = format!("-qmp unix:{},server=on,wait=off", self.qmp.display());
        Failure::new(message).help(match why {
            Unreachable::Absent => {
                format!(
                    "start QEMU with {}, or give its socket",
                    shell_word(&option)
                )
            }
            Unreachable::Forbidden => "run this command as the user that runs QEMU".to_owned(),
            Unreachable::Busy => {
                "end the other client, or give QEMU a second monitor: another -qmp option, for \
                 libvirt as a <qemu:arg>"
                    .to_owned()
            }
            Unreachable::Foreign(_) | Unreachable::Io(_) => {
                format!("give the socket of QEMU's option {}", shell_word(&option))
            }
        })
    }

    fn failed(&self, vms: Partitions<'_>, name: &str, why: &Failed) -> Failure {
        let again = vms.context.command(&format!(
            "hvsock vm reconnect {} --qmp {}",
            shell_word(name),
            shell_word(&self.qmp.display().to_string())
        ));
        let restart = || "restart QEMU".to_owned();
        let show = vms
            .context
            .command(&format!("hvsock vm show {name} --vmm qemu"));
        let help = match why {
            Failed::Stopped(_) => format!("resume the guest (QMP command cont), then {again}"),
            Failed::OtherSocket(_) | Failed::OtherBackEnd => {
                format!("give the monitor of `{name}`")
            }
            Failed::Fixed(_) => {
                format!("restart QEMU, with the device behind a port of its own: {show}")
            }
            Failed::NoDevice => format!("restart QEMU with the options of {show}"),
            Failed::Held(_) => format!(
                "the guest must support PCI hot-plug and must not have crashed; it can still \
                 release the device: {again}"
            ),
            Failed::Refused {
                unplugged: true, ..
            } => format!("the guest has no vsock device now; then again: {again}"),
            Failed::Refused { .. } => restart(),
            Failed::Monitor(_) => again,
        };
        let message = format!("cannot reconnect `{name}`: {why}");
        Failure::new(message).help(help)
    }
}

/// Whether a VMM is connected to the broker.
fn is_connected(state: PartitionState) -> bool {
    matches!(
        state,
        PartitionState::Connected | PartitionState::Running | PartitionState::Paused
    )
}
