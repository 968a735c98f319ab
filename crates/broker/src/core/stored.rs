//! What the core knows of the stores, beside the registrations that the fabric has: which of them are
//! built in, and the problems of entries.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use hvsock_address::ServiceId;
use hvsock_registry::store::{Entry, Origin, Problem};

/// Built-in registrations and problems. The stores bound the number of both.
#[derive(Debug, Default)]
pub(super) struct Stored {
    built_in: HashSet<ServiceId>,
    problems: BTreeMap<(PathBuf, Cause), Problem>,
}

/// Why an entry has a problem. An entry may have one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// Its content, as the store found.
    Content,
    /// The core has refused it.
    Refused,
}

impl Stored {
    /// Records where a registration that came into force comes from.
    pub(super) fn set_origin(&mut self, entry: &Entry) {
        match entry.origin {
            Origin::BuiltIn => self.built_in.insert(entry.registration.id),
            Origin::Stored(_) | Origin::Lease => self.built_in.remove(&entry.registration.id),
        };
    }

    /// Records that a registration is no longer in force.
    pub(super) fn remove(&mut self, service: ServiceId) {
        self.built_in.remove(&service);
    }

    /// Whether the registration is built in and unchanged.
    pub(super) fn is_built_in(&self, service: ServiceId) -> bool {
        self.built_in.contains(&service)
    }

    /// The number of unchanged built-in registrations.
    pub(super) fn built_in_count(&self) -> usize {
        self.built_in.len()
    }

    /// Records a problem. Returns whether it is new.
    pub(super) fn report(&mut self, cause: Cause, problem: Problem) -> bool {
        let key = (problem.path.clone(), cause);
        let old = self.problems.insert(key, problem.clone());
        old != Some(problem)
    }

    /// Records that an entry has no problem. Returns whether it had one.
    pub(super) fn repair(&mut self, cause: Cause, path: &Path) -> bool {
        self.problems.remove(&(path.to_owned(), cause)).is_some()
    }

    /// The problems, one sentence each, sorted by path.
    pub(super) fn problems(&self) -> Vec<String> {
        self.problems.values().map(Problem::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_new_once_until_it_is_repaired() {
        let mut stored = Stored::default();
        let problem = |what: &str| Problem::whole(Path::new("web.toml"), what);
        assert!(stored.report(Cause::Content, problem("is odd")));
        assert!(!stored.report(Cause::Content, problem("is odd")));
        assert!(stored.report(Cause::Content, problem("is odder")));
        assert!(stored.report(Cause::Refused, problem("is refused")));
        let both = ["web.toml: is odder", "web.toml: is refused"];
        assert_eq!(stored.problems(), both);
        assert!(stored.repair(Cause::Refused, Path::new("web.toml")));
        assert!(stored.repair(Cause::Content, Path::new("web.toml")));
        assert!(!stored.repair(Cause::Content, Path::new("web.toml")));
        assert!(stored.report(Cause::Content, problem("is odd")));
    }
}
