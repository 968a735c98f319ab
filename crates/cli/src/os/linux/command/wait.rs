//! `hvsock vm wait` and `hvsock container wait`: until a partition is as a script needs it.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};
use hvsock_control::{Contact, Partition, PartitionState};

use super::guest;
use super::partition::{Named, Partitions};
use crate::failure::Failure;
use crate::os::linux::words;

/// How often it is looked: a broker answers in less than a hundredth of that.
const LOOK: Duration = Duration::from_millis(100);

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Goal {
    /// It runs
    Running,
    /// Its agent is heard
    Agent,
    /// Its agent or its service manager says that it has started
    Ready,
    /// It is off
    Off,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hvsock vm wait web && hvsock exec web -- uptime
  hvsock vm wait web --for off --timeout 60")]
pub struct Wait {
    #[command(flatten)]
    named: Named,
    /// What to wait for
    #[arg(long = "for", value_name = "WHAT", value_enum, default_value_t = Goal::Ready)]
    goal: Goal,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300.0, value_parser = seconds)]
    timeout: f64,
}

/// A time limit in seconds.
pub fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("a time from 0 to 86400 seconds".to_owned()),
    }
}

impl Wait {
    pub fn run(&self, partitions: Partitions<'_>) -> Result<()> {
        let limit = Duration::from_secs_f64(self.timeout);
        let reached = |partition: &Partition| self.goal.reached(partition);
        match until(partitions, &self.named, limit, reached)? {
            Ok(_) => Ok(()),
            Err(partition) => {
                let (name, goal) = (&partition.name, self.goal.words());
                let standing = standing(&partition);
                let sentence = format!("{name} {goal} after {} s: it is {standing}", self.timeout);
                Err(Failure::new(sentence).into())
            }
        }
    }
}

impl Goal {
    fn reached(self, partition: &Partition) -> bool {
        let guest = partition.guest.as_deref();
        match self {
            Self::Running => partition.state == PartitionState::Running,
            Self::Off => partition.state == PartitionState::Off,
            Self::Agent => guest.is_some_and(|guest| guest.contact == Contact::Ok),
            Self::Ready => guest.is_some_and(|guest| guest.ready),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Running => "does not run",
            Self::Off => "is not off",
            Self::Agent => "has no agent that is heard",
            Self::Ready => "is not ready",
        }
    }
}

/// How a partition and its guest stand.
pub fn standing(partition: &Partition) -> String {
    let state = words::standing(partition);
    match guest::word(partition) {
        Some(word) => format!("{state}, {word}"),
        None if partition.state == PartitionState::Off => state.to_owned(),
        None => format!("{state}, and its guest was not heard"),
    }
}

/// Looks until it is as wanted or the time is over; then the partition as it is.
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
        thread::sleep(left.min(LOOK));
    }
}
