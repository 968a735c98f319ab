//! Upgrades that an operator asks for: the broker starts its successor.

use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use hvsock_sys::sync::lock;

use super::{ControlError, Handle};
use crate::api::gate::Busy;
use crate::config::Successor;
use crate::core::Core;
use crate::handover::GivenUp;
use crate::handover::serve::{Figures, Times};
use crate::model::{NewUpgrade, Upgrade};
use crate::sandbox;
use crate::upgrade::{ANSWERS, Asked, RELEASE, Upgrades};

/// How often to look whether a successor has ended before it connected.
const CHILD_POLL: Duration = Duration::from_millis(20);
/// The most that a standstill may be limited to.
const MAX_STANDSTILL: Duration = Duration::from_secs(60);
/// How long a successor that does not run may take to end by itself.
const END: Duration = Duration::from_secs(1);

impl Handle {
    /// Reads the files of registrations and partitions again, and applies what has changed.
    pub fn reload(&self) {
        self.retry_services();
        self.retry_partitions();
    }

    /// Starts the [successor](crate::BrokerConfig::successor) of this broker and hands the broker over to it: its
    /// connections, listeners, leases, virtual machines and containers go on. If anything fails, this broker goes on,
    /// as if nothing had been.
    ///
    /// Blocks for up to a minute and the limit of the standstill.
    ///
    /// # Errors
    ///
    /// [`ControlError::Upgrade`] if the broker was not handed over, with the reason; [`ControlError::Invalid`] for a
    /// limit of more than a minute.
    pub fn upgrade(&self, new: &NewUpgrade) -> Result<Upgrade, ControlError> {
        self.upgrade_for(new, None)
    }

    pub(crate) fn upgrade_for(
        &self,
        new: &NewUpgrade,
        busy: Option<Busy>,
    ) -> Result<Upgrade, ControlError> {
        let failed = |reason: &str| ControlError::Upgrade(reason.to_owned());
        let upgrades = &*self.upgrades;
        let mut times = Times::default();
        if let Some(limit) = new.standstill_limit_ms {
            times.standstill = Duration::from_millis(limit);
            if times.standstill > MAX_STANDSTILL {
                let what = "the limit of a standstill is at most 60000 ms";
                return Err(ControlError::Invalid(what.into()));
            }
        }
        let Some(successor) = &upgrades.successor else {
            return Err(failed("the program that runs this broker has no successor"));
        };
        let (listeners, connections, vms, containers) = self.call(Core::handed_over_counts)?;
        let (result, answer) = sync_channel(1);
        {
            let mut asked = lock(&upgrades.asked);
            if asked.is_some() {
                return Err(failed("another upgrade is under way"));
            }
            *asked = Some(Asked {
                times,
                busy,
                result,
                pid: None,
            });
        }
        let figures = start(upgrades, successor, new.dry_run, &answer);
        *lock(&upgrades.asked) = None;
        let figures = figures.map_err(ControlError::Upgrade)?;
        Ok(Upgrade {
            dry_run: new.dry_run,
            from_version: RELEASE.into(),
            to_version: figures.release,
            pid: figures.pid.unwrap_or_default(),
            standstill_ms: figures.standstill.as_secs_f64() * 1e3,
            connections,
            vms,
            containers,
            listeners,
            descriptors: figures.descriptors,
            state_bytes: figures.bytes,
        })
    }
}

/// Starts the program and waits for the end of the handover to it.
fn start(
    upgrades: &Upgrades,
    successor: &Successor,
    dry_run: bool,
    answer: &Receiver<Result<Figures, GivenUp>>,
) -> Result<Figures, String> {
    let program = successor.program.display();
    let mut command = Command::new(&successor.program);
    command.args(&successor.args).stdin(Stdio::null());
    // It names this process.
    command.env_remove("WATCHDOG_PID");
    if dry_run {
        command.args(&successor.dry_run);
    }
    let mut child = {
        // Whoever connects is looked up only after this.
        let mut asked = lock(&upgrades.asked);
        // It is not under the confinement of this thread.
        let child = sandbox::outside(move || command.spawn());
        let child = child.map_err(|error| format!("cannot start {program}: {error}"))?;
        if let Some(asked) = &mut *asked {
            asked.pid = Some(child.id());
        }
        child
    };
    let times = Times::default();
    let deadline = Instant::now() + times.prepare + MAX_STANDSTILL;
    let result = loop {
        match answer.recv_timeout(CHILD_POLL) {
            Ok(Ok(figures)) => break Ok(figures),
            Ok(Err(GivenUp::Failed(reason))) => break Err(reason),
            Ok(Err(GivenUp::DryRun)) => break Err("it was a dry run".into()),
            Err(RecvTimeoutError::Disconnected) => break Err("the broker is stopping".into()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Ok(Some(status)) = child.try_wait() {
            // One that has connected is reported when it is served.
            match answer.recv_timeout(ANSWERS) {
                Ok(Ok(figures)) => break Ok(figures),
                Ok(Err(GivenUp::Failed(reason))) => break Err(reason),
                _ => {
                    break Err(format!(
                        "{program} ended before it had taken over ({status}); the broker's log has its message"
                    ));
                }
            }
        }
        if Instant::now() >= deadline {
            break Err("the new broker takes too long".into());
        }
    };
    reap(child, result.is_ok() && !dry_run);
    result
}

/// Ends a successor that does not run, and waits for it.
fn reap(mut child: Child, runs: bool) {
    if runs {
        // This process ends soon.
        return;
    }
    let waited = std::thread::Builder::new()
        .name("hvsock-reap".into())
        .spawn(move || {
            std::thread::sleep(END);
            let _ = child.kill();
            let _ = child.wait();
        });
    if let Err(error) = waited {
        tracing::warn!(%error, "cannot wait for the end of a new broker that does not run");
    }
}
