//! What the broker cannot do as it should, for operators: whoever notices a problem raises it, and clears
//! it when it is gone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use hvsock_fabric::Fix;

use crate::model::{FixReport, Problem, ProblemKind};

/// The most problems that are kept.
const MAX_PROBLEMS: usize = 4096;

/// Wakes the thread that tries again what has failed. Sending never blocks.
pub(crate) type Wakeup = SyncSender<()>;

/// A file as the object of a problem.
pub(super) fn object_of(path: &Path) -> String {
    path.display().to_string()
}

/// The current problems, at most one of each kind for each object.
#[derive(Debug, Default)]
pub(super) struct Problems {
    known: BTreeMap<(ProblemKind, String), Record>,
    /// How many were raised when there was no place for them, since there last was.
    dropped: usize,
}

#[derive(Debug)]
struct Record {
    text: String,
    since: Instant,
    fix: Option<Fix>,
}

impl Problems {
    /// Raises a problem, or changes its text. Returns whether it is new or reads differently.
    pub(super) fn raise(
        &mut self,
        kind: ProblemKind,
        object: impl Into<String>,
        text: impl Into<String>,
        fix: Option<Fix>,
        now: Instant,
    ) -> bool {
        let (key, text) = ((kind, object.into()), text.into());
        if let Some(known) = self.known.get_mut(&key) {
            let is_new = known.text != text;
            (known.text, known.fix) = (text, fix);
            return is_new;
        }
        if self.known.len() >= MAX_PROBLEMS {
            self.dropped = self.dropped.saturating_add(1);
            return true;
        }
        let since = now;
        self.known.insert(key, Record { text, since, fix });
        true
    }

    /// Clears a problem. Returns its text if there was one.
    pub(super) fn clear(&mut self, kind: ProblemKind, object: &str) -> Option<String> {
        let known = self.known.remove(&(kind, object.to_owned()))?;
        if self.known.is_empty() {
            self.dropped = 0;
        }
        Some(known.text)
    }

    /// The objects that have a problem of this kind.
    pub(super) fn objects(&self, kind: ProblemKind) -> Vec<String> {
        let of_kind = self.known.keys().filter(|(known, _)| *known == kind);
        of_kind.map(|(_, object)| object.clone()).collect()
    }

    /// The text of a problem, if there is it.
    pub(super) fn text(&self, kind: ProblemKind, object: &str) -> Option<&str> {
        let known = self.known.get(&(kind, object.to_owned()))?;
        Some(&known.text)
    }

    /// Whether there is a problem of one of these kinds.
    pub(super) fn has_any(&self, kinds: &[ProblemKind]) -> bool {
        self.known.keys().any(|(kind, _)| kinds.contains(kind))
    }

    /// The problems, by kind and object.
    pub(super) fn list(&self, now: Instant) -> Vec<Problem> {
        let known = self.known.iter().map(|((kind, object), record)| Problem {
            kind: *kind,
            object: object.clone(),
            text: record.text.clone(),
            age_seconds: now.saturating_duration_since(record.since).as_secs_f64(),
            fix: record.fix.as_ref().map(FixReport::from),
        });
        let more = (self.dropped > 0).then(|| Problem {
            kind: ProblemKind::More,
            object: String::new(),
            text: format!(
                "there were {} more problems, which the log has",
                self.dropped
            ),
            age_seconds: 0.0,
            fix: None,
        });
        known.chain(more).collect()
    }

    /// The number of problems of each kind.
    pub(super) fn count(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for (kind, _) in self.known.keys() {
            *counts.entry(kind.label()).or_default() += 1;
        }
        if self.dropped > 0 {
            let dropped = u64::try_from(self.dropped).unwrap_or(u64::MAX);
            counts.insert(ProblemKind::More.label(), dropped);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_problem_is_new_once_until_it_is_cleared_and_keeps_its_age() {
        let mut problems = Problems::default();
        let start = Instant::now();
        let later = start + Duration::from_secs(5);
        let kind = ProblemKind::ConfigFile;
        assert!(problems.raise(kind, "web.toml", "is odd", None, start));
        assert!(!problems.raise(kind, "web.toml", "is odd", None, later));
        assert!(problems.raise(kind, "web.toml", "is odder", None, later));
        assert!(problems.raise(
            ProblemKind::ConfigRefused,
            "web.toml",
            "is refused",
            None,
            later
        ));
        let listed = problems.list(later);
        let texts: Vec<_> = listed
            .iter()
            .map(|one| (one.text.as_str(), one.age_seconds))
            .collect();
        assert_eq!(texts, [("is odder", 5.0), ("is refused", 0.0)]);
        assert_eq!(
            problems.count(),
            [("config_file", 1), ("config_refused", 1)].into()
        );
        assert_eq!(
            problems.clear(kind, "web.toml").as_deref(),
            Some("is odder")
        );
        assert_eq!(problems.clear(kind, "web.toml"), None);
        assert!(problems.has_any(&[ProblemKind::ConfigRefused]) && !problems.has_any(&[kind]));
        assert!(problems.raise(kind, "web.toml", "is odd", None, later));
    }

    #[test]
    fn problems_are_bounded_and_those_beyond_the_bound_are_counted() {
        let mut problems = Problems::default();
        let now = Instant::now();
        for number in 0..MAX_PROBLEMS + 3 {
            problems.raise(ProblemKind::ConfigFile, number.to_string(), "x", None, now);
        }
        let listed = problems.list(now);
        assert_eq!(listed.len(), MAX_PROBLEMS + 1);
        assert!(
            listed
                .last()
                .unwrap()
                .text
                .starts_with("there were 3 more problems")
        );
        assert_eq!(problems.count()["more"], 3);
        for number in 0..MAX_PROBLEMS {
            problems.clear(ProblemKind::ConfigFile, &number.to_string());
        }
        assert_eq!(problems.list(now), []);
    }
}
