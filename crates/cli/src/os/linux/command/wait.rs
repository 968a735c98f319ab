//! `hvsock vm wait` and `hvsock container wait`: wait until a partition has reached a state.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};
use hvsock_client::ClientError;
use hvsock_control::{AgentState, Partition, PartitionState};

use super::guest;
use super::partition::{Named, Partitions};
use crate::failure::Failure;
use crate::os::linux::format;

/// The poll interval. A broker answers in less than a hundredth of it.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The state to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Goal {
    /// The partition runs
    Running,
    /// The guest's agent is connected
    Agent,
    /// The guest reports that it has started
    Ready,
    /// The partition is off
    Off,
    /// The container has exited, or is removed
    Exited,
    /// The partition is paused
    Paused,
}

#[derive(Debug, Args)]
pub struct Wait {
    #[command(flatten)]
    named: Named,
    /// The state to wait for
    #[arg(long = "for", value_name = "STATE", value_enum, default_value_t = Goal::Ready)]
    goal: Goal,
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0, value_parser = seconds)]
    timeout: f64,
}

/// Parses a time limit of at most a day.
pub fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected 0 to 86400 seconds".to_owned()),
    }
}

impl Wait {
    pub fn run(&self, partitions: Partitions<'_>) -> Result<()> {
        let limit = Duration::from_secs_f64(self.timeout);
        let was_there = Cell::new(false);
        let reached = |partition: &Partition| {
            was_there.set(true);
            self.goal.reached(partition)
        };
        match until(partitions, &self.named, limit, reached) {
            // One that is removed with its container.
            Err(error) if self.goal == Goal::Exited && was_there.get() && is_gone(&error) => Ok(()),
            Err(error) => Err(error),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(partition)) => {
                let (name, goal) = (&partition.name, self.goal.not_reached());
                let state = current_state(&partition);
                let message = format!("{name} {goal} after {} s: it is {state}", self.timeout);
                Err(Failure::new(message).into())
            }
        }
    }
}

impl Goal {
    fn reached(self, partition: &Partition) -> bool {
        let guest = partition.guest.as_deref();
        match self {
            Self::Running => partition.state == PartitionState::Running,
            // A VM whose VMM has not been seen is off, too, and so is a container that has exited.
            Self::Off | Self::Exited => {
                matches!(
                    partition.state,
                    PartitionState::Off | PartitionState::Defined | PartitionState::Exited
                )
            }
            Self::Paused => partition.state == PartitionState::Paused,
            Self::Agent => guest.is_some_and(|guest| guest.agent == AgentState::Connected),
            Self::Ready => guest.is_some_and(|guest| guest.ready),
        }
    }

    fn not_reached(self) -> &'static str {
        match self {
            Self::Running => "does not run",
            Self::Off => "is not off",
            Self::Exited => "has not exited",
            Self::Paused => "is not paused",
            Self::Agent => "has no connected agent",
            Self::Ready => "is not ready",
        }
    }
}

/// Whether an error says that there is no such partition.
fn is_gone(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(ClientError::Refused { status: 404, .. })
    )
}

/// The state of a partition and of its guest.
pub fn current_state(partition: &Partition) -> String {
    let state = format::detailed_state(partition);
    match guest::word(partition) {
        Some(word) => format!("{state}, {word}"),
        None if partition.state.is_down() => state.to_owned(),
        None => format!("{state}, no agent connected"),
    }
}

/// Polls a partition until `reached` is true. `Err` is the partition after the time limit.
pub fn until(
    partitions: Partitions<'_>,
    named: &Named,
    limit: Duration,
    reached: impl Fn(&Partition) -> bool,
) -> Result<Result<Partition, Partition>> {
    let began = Instant::now();
    loop {
        let partition = partitions.find(named)?;
        if reached(&partition) {
            return Ok(Ok(partition));
        }
        let left = limit.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Ok(Err(partition));
        }
        thread::sleep(left.min(POLL_INTERVAL));
    }
}
