//! Raising and clearing [`problems`](super::problems), with their events.

use std::collections::BTreeMap;
use std::time::Instant;

use hvsock_fabric::Fix;
use hvsock_registry::store::WatchFault;

use super::problems::Wakeup;
use super::state::Core;
use crate::model::{EventKind, ProblemKind};

/// What is watched for changes by others.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Watched {
    /// The registrations.
    Services,
    /// The partition files.
    Partitions,
}

impl Watched {
    fn object(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Partitions => "partitions",
        }
    }
}

/// Twice what a limit of the kernel is now, but enough for a machine with many programs.
fn doubled(name: &str) -> u64 {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    let now = std::fs::read_to_string(path).unwrap_or_default();
    let now: u64 = now.trim().parse().unwrap_or_default();
    now.saturating_mul(2).max(1024)
}

impl Core {
    /// Raises a problem. Logs and publishes it if it is new.
    pub(crate) fn raise(
        &mut self,
        kind: ProblemKind,
        object: impl Into<String>,
        text: impl Into<String>,
        fix: Option<Fix>,
    ) {
        let text = text.into();
        let now = Instant::now();
        if !self.problems.raise(kind, object, text.clone(), fix, now) {
            return;
        }
        tracing::warn!("{text}");
        let problem = text;
        self.telemetry
            .publish(|| EventKind::ProblemFound { kind, problem });
        if let Some(retries) = &self.retries {
            // If the queue is full, the thread is woken already.
            let _ = retries.try_send(());
        }
    }

    /// Clears a problem, if there is one.
    pub(crate) fn clear(&mut self, kind: ProblemKind, object: &str) {
        if let Some(problem) = self.problems.clear(kind, object) {
            tracing::info!("solved: {problem}");
            self.telemetry
                .publish(|| EventKind::ProblemSolved { kind, problem });
        }
    }

    /// Wakes the thread that tries again what has failed, whenever a problem is raised.
    pub(crate) fn wake_on_problems(&mut self, wakeup: Wakeup) {
        self.retries = Some(wakeup);
    }

    /// Records why changes of configuration files are found late, or that they are not.
    pub(crate) fn set_watch_fault(&mut self, watched: Watched, fault: Option<WatchFault>) {
        let kind = ProblemKind::ConfigWatch;
        match fault {
            Some(fault) => {
                let fix = fault.limit.map(|name| Fix::RaiseKernelLimit {
                    name: name.to_owned(),
                    value: doubled(name),
                });
                self.raise(kind, watched.object(), fault.what, fix);
            }
            None => self.clear(kind, watched.object()),
        }
    }

    /// Raises a problem while clients are refused for want of a descriptor.
    pub(super) fn check_shortage(&mut self, now: Instant) {
        let (kind, object) = (ProblemKind::Descriptors, "clients");
        let Some((error, ends)) = self.endpoints.shortage() else {
            return;
        };
        if ends <= now {
            self.endpoints.end_shortage();
            self.clear(kind, object);
        } else {
            let text = format!("clients are refused, because no descriptor is free: {error}");
            self.raise(kind, object, text, Some(Fix::RaiseDescriptorLimit));
        }
    }

    /// Whether there is a problem of one of these kinds.
    pub(crate) fn has_problem(&self, kinds: &[ProblemKind]) -> bool {
        self.problems.has_any(kinds)
    }

    /// The number of problems of each kind.
    pub(crate) fn problem_metrics(&self) -> BTreeMap<String, u64> {
        let counts = self.problems.count().into_iter();
        counts
            .map(|(kind, count)| (kind.to_owned(), count))
            .collect()
    }
}
