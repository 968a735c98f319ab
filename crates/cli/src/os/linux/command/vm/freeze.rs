//! `hvsock vm freeze` and `hvsock vm thaw`: a guest's filesystems at rest, for a snapshot.

use std::ffi::OsString;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock_services::host::freeze::{FreezeReply, Freezer, LONGEST, Outcome, ThawReply};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::context::Context;
use crate::failure::{Ended, Failure};
use crate::os::Partition;
use crate::os::linux::guest_services::{block_on, failure, target};
use crate::os::linux::words;
use crate::output::{self, Json};
use crate::table::Columns;
use crate::words::shell_word;

/// Freeze a guest's filesystems, so that a snapshot of its disks is whole
///
/// Programs in the guest that write wait meanwhile. With a command, that is run here while they are
/// frozen, and they are thawed when it ends; without one they stay frozen until `hvsock vm thaw`. In
/// any case they are thawed when the time limit is over, and then this says so and fails: the
/// snapshot is not whole.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hvsock vm freeze web -- virsh snapshot-create-as web nightly --disk-only
  hvsock vm freeze web --timeout 30 --mount /srv
  hvsock vm thaw web")]
pub struct Freeze {
    /// The virtual machine, by name or GUID
    #[arg(value_name = "NAME")]
    vm: Partition,
    /// Thaw after so many seconds, 300 at the most
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    timeout: Duration,
    /// Only the filesystem that is mounted here; may be given more than once
    #[arg(long = "mount", value_name = "PATH")]
    mounts: Vec<String>,
    #[command(flatten)]
    json: Json,
    /// The command to run on the host while they are frozen, such as one that makes the snapshot
    #[arg(last = true, conflicts_with = "json")]
    command: Vec<OsString>,
}

/// Thaw a guest's filesystems
///
/// It fails if they were not frozen until now: a snapshot that was made meanwhile is not whole.
#[derive(Debug, Args)]
pub struct Thaw {
    /// The virtual machine, by name or GUID
    #[arg(value_name = "NAME")]
    vm: Partition,
    /// Only if it is this freeze, whose id `freeze --json` printed
    #[arg(
        long,
        value_name = "ID",
        default_value_t = 0,
        hide_default_value = true
    )]
    id: u64,
    #[command(flatten)]
    json: Json,
}

/// A time limit, as on the command line.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.strip_suffix('s').unwrap_or(text).parse().ok();
    let limit = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    limit
        .filter(|limit| (Duration::from_millis(1)..=LONGEST).contains(limit))
        .ok_or_else(|| format!("a number of seconds up to {}, please", LONGEST.as_secs()))
}

/// What `freeze --json` prints.
#[derive(Debug, Serialize)]
struct Frozen<'a> {
    id: u64,
    limit_seconds: f64,
    frozen: Vec<Mount<'a>>,
    skipped: Vec<Mount<'a>>,
}

#[derive(Debug, Serialize)]
struct Mount<'a> {
    mount: &'a str,
    kind: &'a str,
    source: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
}

impl<'a> Frozen<'a> {
    fn of(reply: &'a FreezeReply, limit: Duration) -> Self {
        let mount = |one: &'a hvsock_services::wire::freeze::Filesystem, why| Mount {
            mount: &one.mount,
            kind: &one.kind,
            source: &one.source,
            why,
        };
        let skipped = reply.skipped.iter().filter_map(|one| {
            let filesystem = one.filesystem.as_ref()?;
            Some(mount(filesystem, Some(one.why.as_str())))
        });
        Self {
            id: reply.id,
            limit_seconds: limit.as_secs_f64(),
            frozen: reply.frozen.iter().map(|one| mount(one, None)).collect(),
            skipped: skipped.collect(),
        }
    }
}

impl Freeze {
    pub fn run(self, context: &Context) -> Result<()> {
        let target = target(context, &self.vm)?;
        let fail = |error| failure(context, error);
        block_on(async {
            let mut freezer = Freezer::connect(&target).await.map_err(fail)?;
            // From here on a Ctrl-C is the command's, and what is frozen is thawed after it.
            let mut signals = Signals::catch()?;
            let frozen = tokio::select! {
                frozen = freezer.freeze(self.timeout, self.mounts.clone()) => frozen.map_err(fail)?,
                _ = signals.next() => return Err(Failure::new("given up").into()),
            };
            if self.command.is_empty() {
                return self.print(context, &frozen);
            }
            for one in Frozen::of(&frozen, self.timeout).skipped {
                context.note(&format!(
                    "{} is not frozen: {}",
                    one.mount,
                    one.why.unwrap_or("")
                ));
            }
            let ended = self.command(&mut signals).await;
            let thawed = freezer.thaw(frozen.id).await.map_err(fail)?;
            judge(&self.vm, &thawed)?;
            let time = words::age(thawed.frozen_ms as f64 / 1000.0);
            context.note(&format!("`{}` was frozen for {time}", self.vm));
            match ended?.code() {
                Some(0) => Ok(()),
                Some(code) => Err(Ended(code as u8).into()),
                None => Err(Failure::new("the command was killed").into()),
            }
        })?
    }

    fn print(&self, context: &Context, reply: &FreezeReply) -> Result<()> {
        let frozen = Frozen::of(reply, self.timeout);
        if self.json.json {
            return output::json(&frozen);
        }
        let mut table = Columns::new(&["mount", "type", "source", "state"], "nothing");
        for one in frozen.frozen.into_iter().chain(frozen.skipped) {
            let state = one
                .why
                .map_or("frozen".to_owned(), |why| format!("not frozen: {why}"));
            table.row([one.mount.into(), one.kind.into(), one.source.into(), state]);
        }
        table.print()?;
        let thaw = context.command(&format!(
            "hvsock vm thaw {}",
            shell_word(&self.vm.to_string())
        ));
        let limit = self.timeout.as_secs_f64();
        context.note(&format!(
            "They stay so until `{thaw}`, or for {limit} s at the most"
        ));
        Ok(())
    }

    /// Runs the command to its end.
    async fn command(&self, signals: &mut Signals) -> Result<ExitStatus> {
        let (program, arguments) = self.command.split_first().context("no command")?;
        let mut child = Command::new(program)
            .args(arguments)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        loop {
            tokio::select! {
                status = child.wait() => return Ok(status?),
                signal = signals.next() => {
                    // A terminal sends its own to the command as well.
                    let pid = child.id().and_then(|pid| Pid::from_raw(pid as i32));
                    if let (Some(pid), Signal::TERM) = (pid, signal) {
                        let _ = kill_process(pid, signal);
                    }
                }
            }
        }
    }
}

/// The signals by which somebody wants an end.
struct Signals([tokio::signal::unix::Signal; 3]);

impl Signals {
    fn catch() -> Result<Self> {
        let catch = || {
            Ok([
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            ])
        };
        catch().map(Self).map_err(|error: std::io::Error| {
            anyhow::Error::new(error).context("cannot catch signals")
        })
    }

    async fn next(&mut self) -> Signal {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => Signal::INT,
            _ = terminate.recv() => Signal::TERM,
            _ = hangup.recv() => Signal::HUP,
        }
    }
}

impl Thaw {
    pub fn run(self, context: &Context) -> Result<()> {
        let target = target(context, &self.vm)?;
        let thawed = block_on(async { Freezer::connect(&target).await?.thaw(self.id).await })?;
        let thawed = thawed.map_err(|error| failure(context, error))?;
        if self.json.json {
            output::json(&serde_json::json!({
                "outcome": word(thawed.outcome()),
                "frozen_seconds": thawed.frozen_ms as f64 / 1000.0,
                "failures": thawed.failures,
            }))?;
        }
        judge(&self.vm, &thawed)?;
        let time = words::age(thawed.frozen_ms as f64 / 1000.0);
        context.note(&format!("`{}` is thawed after {time}", self.vm));
        Ok(())
    }
}

/// An outcome, for programs.
fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Thawed => "thawed",
        Outcome::NotFrozen => "not-frozen",
        Outcome::Expired => "expired",
        Outcome::Earlier => "earlier",
        Outcome::Lost => "lost",
        Outcome::Unspecified => "unknown",
    }
}

/// Whether everything was frozen until the thaw.
fn judge(vm: &Partition, thawed: &ThawReply) -> Result<()> {
    let before =
        |why: &str| format!("`{vm}` was thawed before, by {why}: a snapshot of it is not whole");
    let sentence = match thawed.outcome() {
        Outcome::Thawed if thawed.failures.is_empty() => return Ok(()),
        Outcome::Thawed => format!("`{vm}` is not thawed: {}", thawed.failures.join("; ")),
        Outcome::NotFrozen => format!("nothing is frozen in `{vm}`"),
        Outcome::Expired => before("the time limit"),
        Outcome::Earlier => before("somebody else"),
        Outcome::Lost => before("its agent, as what kept it frozen had been killed"),
        Outcome::Unspecified => format!("`{vm}` did not say what became of the freeze"),
    };
    Err(Failure::new(sentence).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_limit_is_seconds_within_bounds() {
        assert_eq!(seconds("10"), Ok(Duration::from_secs(10)));
        assert_eq!(seconds("0.5s"), Ok(Duration::from_millis(500)));
        for bad in ["0", "301", "-1", "NaN", "inf", "ten", ""] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
