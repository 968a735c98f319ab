//! Explanations: what a request would do, and which check decides, as text.
//!
//! A real request and an explanation run the same checks and report each check to a [`Trace`]. A real
//! request uses [`NoTrace`], which has no cost and formats no text. An explanation uses [`Recorder`].

use hvsock_address::{ServiceId, ServiceRef};
use hvsock_registry::Registration;

use crate::{Destination, PartitionKey, Refusal};

/// The predicted result of a connect or listen, with the checks that lead to it.
#[doc(alias = "dry run")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessExplanation {
    /// The predicted result.
    pub verdict: Result<Verdict, Refusal>,
    /// The checks, in order.
    pub steps: Vec<ExplanationStep>,
    /// The command or other action that would turn a refusal into success.
    pub fix: Option<String>,
}

/// The predicted success of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The connect would reach this partition.
    Connect {
        /// The partition.
        target: PartitionKey,
        /// The listener or guest that would accept.
        destination: Destination,
    },
    /// The listener would be created.
    Listen,
}

/// One check of an explanation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplanationStep {
    /// The question that the check answers.
    pub question: String,
    /// The answer, with the rule that decided.
    pub answer: String,
    /// Whether the request passes this check.
    pub pass: bool,
}

/// The reader of an explanation, which decides what it may reveal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// An operator, who may see the registry and every partition.
    Operator,
    /// The requesting process. Outside the partition that owns the registry it sees which rule
    /// decided, but not the entries of the rule's lists. It sees nothing of partitions that it cannot
    /// reach.
    Requester,
}

/// Receives the checks of a request.
pub(crate) trait Trace {
    /// Records one check. `entry` is called only if the trace keeps entries.
    fn record(&mut self, entry: impl FnOnce(Audience) -> TraceEntry);

    /// Sets the remedy for the refusal that follows.
    fn fix(&mut self, fix: impl FnOnce() -> String);
}

/// One check, with a remedy if it fails.
pub(crate) struct TraceEntry {
    step: ExplanationStep,
    fix: Option<String>,
}

/// Discards all entries.
pub(crate) struct NoTrace;

/// Keeps all entries for an explanation.
pub(crate) struct Recorder {
    audience: Audience,
    steps: Vec<ExplanationStep>,
    fix: Option<String>,
}

impl Trace for NoTrace {
    #[inline(always)]
    fn record(&mut self, _: impl FnOnce(Audience) -> TraceEntry) {}

    #[inline(always)]
    fn fix(&mut self, _: impl FnOnce() -> String) {}
}

impl Trace for Recorder {
    fn record(&mut self, entry: impl FnOnce(Audience) -> TraceEntry) {
        let TraceEntry { step, fix } = entry(self.audience);
        self.steps.push(step);
        self.fix = fix.or(self.fix.take());
    }

    fn fix(&mut self, fix: impl FnOnce() -> String) {
        self.fix = Some(fix());
    }
}

impl Recorder {
    pub(crate) fn new(audience: Audience) -> Self {
        Self {
            audience,
            steps: Vec::new(),
            fix: None,
        }
    }

    pub(crate) fn explain(self, verdict: Result<Verdict, Refusal>) -> AccessExplanation {
        AccessExplanation {
            fix: self.fix.filter(|_| verdict.is_err()),
            steps: self.steps,
            verdict,
        }
    }
}

impl TraceEntry {
    pub(crate) fn new(pass: bool, question: impl Into<String>, answer: impl Into<String>) -> Self {
        Self {
            step: ExplanationStep {
                question: question.into(),
                answer: answer.into(),
                pass,
            },
            fix: None,
        }
    }

    /// Adds a remedy.
    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// A service as a command-line argument: its friendly name if it is registered, else its id.
pub(crate) fn service_argument(id: ServiceId, registration: Option<&Registration>) -> String {
    match registration {
        Some(registration) => shell_word(registration.name.as_str()),
        None => ServiceRef::Id(id).to_string(),
    }
}

/// Quotes `text` as one word of a POSIX shell. Friendly names are untrusted, and users paste the shown
/// command: a name must not inject another command.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if text.chars().all(plain) && !text.starts_with('-') {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_friendly_name_is_quoted_as_one_shell_word() {
        for (name, want) in [
            ("backup", "backup"),
            ("HV Socket Demo", "'HV Socket Demo'"),
            ("a'; reboot #", r"'a'\''; reboot #'"),
            ("$(reboot)", "'$(reboot)'"),
            ("-rf", "'-rf'"),
        ] {
            assert_eq!(shell_word(name), want);
        }
    }
}
