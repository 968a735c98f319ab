//! What is known of a test before it runs, and what its result then means.
//!
//! A list of tests that cannot pass is checked by each run: a test that passes in spite of it is a failure, so that the
//! list cannot outlive its reasons.

use crate::suite::Verdict;

/// What is known of a test in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It passes.
    Pass,
    /// It cannot pass.
    Failure(Reason),
    /// It cannot pass, and takes minutes to fail. It runs only if all are to be run.
    Hang(Reason),
    /// It passes or fails by chance.
    Either(Reason),
}

/// Why a test cannot pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The kernel of a guest is older than this version.
    Kernel(&'static str),
    /// The socket under `hvsock run` is no kernel's `AF_VSOCK`.
    Socket(&'static str),
}

impl Reason {
    /// The verdict on a test that does not pass for this reason.
    pub fn verdict(self) -> Verdict {
        match self {
            Self::Kernel(version) => Verdict::Kernel(version),
            Self::Socket(why) => Verdict::Impossible(why),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Kernel(version) => format!("not with a kernel older than {version}"),
            Self::Socket(why) => why.to_owned(),
        }
    }
}

impl Expected {
    /// The verdict on a test that has run. `failure` says why it failed.
    pub fn verdict(self, failure: Option<String>) -> Verdict {
        match (self, failure) {
            (Self::Pass | Self::Either(_), None) => Verdict::Passed,
            (Self::Pass, Some(why)) => Verdict::Failed(why),
            (Self::Failure(reason) | Self::Hang(reason) | Self::Either(reason), Some(_)) => {
                reason.verdict()
            }
            (Self::Failure(reason) | Self::Hang(reason), None) => Verdict::Failed(format!(
                "it passed, but is listed as impossible: {}\nhelp: remove it from the list",
                reason.text()
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REASON: Reason = Reason::Socket("a reason");

    #[test]
    fn a_test_that_passes_in_spite_of_the_list_is_a_failure() {
        for expected in [Expected::Failure(REASON), Expected::Hang(REASON)] {
            let verdict = expected.verdict(None);
            let Verdict::Failed(why) = verdict else {
                panic!("{expected:?}: {verdict:?}");
            };
            assert!(why.contains("a reason"), "{why}");
        }
    }

    #[test]
    fn a_test_that_fails_as_listed_is_impossible_and_any_other_has_failed() {
        let fails = |expected: Expected| expected.verdict(Some("why".into()));
        for expected in [
            Expected::Failure(REASON),
            Expected::Hang(REASON),
            Expected::Either(REASON),
        ] {
            assert!(matches!(fails(expected), Verdict::Impossible("a reason")));
        }
        let kernel = Expected::Failure(Reason::Kernel("6.12"));
        assert!(matches!(fails(kernel), Verdict::Kernel("6.12")));
        assert!(matches!(fails(Expected::Pass), Verdict::Failed(why) if why == "why"));
    }

    #[test]
    fn a_test_that_depends_on_chance_passes_if_it_does() {
        for expected in [Expected::Pass, Expected::Either(REASON)] {
            assert!(matches!(expected.verdict(None), Verdict::Passed));
        }
    }
}
