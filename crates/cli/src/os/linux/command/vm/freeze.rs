//! `hvsock vm freeze` and `hvsock vm thaw`: freeze a guest's filesystems for a snapshot.

use std::ffi::{OsStr, OsString};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock_services::host::freeze::{FreezeReply, Freezer, MAX_LIMIT, Outcome, ThawReply};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::context::Context;
use crate::failure::{Ended, Failure};
use crate::format::shell_word;
use crate::os::Partition;
use crate::os::linux::format;
use crate::os::linux::guest_services::{block_on, failure, target_for};
use crate::output::{self, Json};
use crate::table::Columns;

/// Freeze a guest's filesystems for a snapshot
#[derive(Debug, Args)]
pub struct Freeze {
    /// The virtual machine, by name or GUID
    #[arg(value_name = "NAME")]
    vm: Partition,
    /// Thaw after this many seconds (at most 300)
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    timeout: Duration,
    /// Freeze only this filesystem; may be repeated
    #[arg(long = "mount", value_name = "PATH")]
    mounts: Vec<String>,
    #[command(flatten)]
    json: Json,
    /// Run this command on the host while the filesystems are frozen
    #[arg(last = true, conflicts_with = "json")]
    command: Vec<OsString>,
}

/// Thaw a guest's filesystems
#[derive(Debug, Args)]
pub struct Thaw {
    /// The virtual machine, by name or GUID
    #[arg(value_name = "NAME")]
    vm: Partition,
    /// Thaw only the freeze with this id, see freeze --json
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

/// Parses a time limit.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.strip_suffix('s').unwrap_or(text).parse().ok();
    let limit = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    limit
        .filter(|limit| (Duration::from_millis(1)..=MAX_LIMIT).contains(limit))
        .ok_or_else(|| {
            format!(
                "expected more than 0 and at most {} seconds",
                MAX_LIMIT.as_secs()
            )
        })
}

/// The output of `freeze --json`.
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
        let mounts: Vec<&OsStr> = self.mounts.iter().map(OsStr::new).collect();
        let target = target_for(context, &self.vm, "freeze", &mounts)?;
        let fail = |error| failure(context, error);
        block_on(async {
            let mut freezer = Freezer::connect(&target).await.map_err(fail)?;
            // From here on a signal is for the command, and the thaw follows it.
            let mut signals = Signals::catch()?;
            let frozen = tokio::select! {
                frozen = freezer.freeze(self.timeout, self.mounts.clone()) => frozen.map_err(fail)?,
                _ = signals.next() => return Err(Failure::new("the freeze was interrupted").into()),
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
            check(&self.vm, &thawed)?;
            let time = format::age(thawed.frozen_ms as f64 / 1000.0);
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
            "They stay frozen until `{thaw}`, for at most {limit} s"
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
                    // A terminal sends SIGINT and SIGHUP to the command as well.
                    let pid = child.id().and_then(|pid| Pid::from_raw(pid as i32));
                    if let (Some(pid), Signal::TERM) = (pid, signal) {
                        let _ = kill_process(pid, signal);
                    }
                }
            }
        }
    }
}

/// The signals that end a command.
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
        let target = target_for(context, &self.vm, "thaw", &[])?;
        let thawed = block_on(async { Freezer::connect(&target).await?.thaw(self.id).await })?;
        let thawed = thawed.map_err(|error| failure(context, error))?;
        if self.json.json {
            output::json(&serde_json::json!({
                "outcome": outcome_word(thawed.outcome()),
                "frozen_seconds": thawed.frozen_ms as f64 / 1000.0,
                "failures": thawed.failures,
            }))?;
        }
        check(&self.vm, &thawed)?;
        let time = format::age(thawed.frozen_ms as f64 / 1000.0);
        context.note(&format!("`{}` was frozen for {time}", self.vm));
        Ok(())
    }
}

/// An outcome as a word for programs.
fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Thawed => "thawed",
        Outcome::NotFrozen => "not-frozen",
        Outcome::Expired => "expired",
        Outcome::Earlier => "earlier",
        Outcome::Lost => "lost",
        Outcome::Unspecified => "unknown",
    }
}

/// Checks that everything was frozen until the thaw.
fn check(vm: &Partition, thawed: &ThawReply) -> Result<()> {
    let before =
        |why: &str| format!("`{vm}` was thawed before, by {why}: the snapshot is not consistent");
    let message = match thawed.outcome() {
        Outcome::Thawed if thawed.failures.is_empty() => return Ok(()),
        Outcome::Thawed => format!("cannot thaw `{vm}`: {}", thawed.failures.join("; ")),
        Outcome::NotFrozen => format!("nothing is frozen in `{vm}`"),
        Outcome::Expired => before("the time limit"),
        Outcome::Earlier => before("another command"),
        Outcome::Lost => before("its agent, because the process that froze it was killed"),
        Outcome::Unspecified => format!("`{vm}` reported no outcome of the freeze"),
    };
    Err(Failure::new(message).into())
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
