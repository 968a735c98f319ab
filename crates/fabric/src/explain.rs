//! What would happen, and why, in words.
//!
//! There is one way through the questions that a connect or listen is judged by, and it tells a
//! [`Trace`] what it asks and finds. For a real request that is [`Silent`], which costs nothing and
//! builds no text; for an explanation it is [`Notes`], which keeps everything.

use hvsock_address::{ServiceId, ServiceRef};
use hvsock_registry::Registration;

use crate::{Destination, PartitionKey, Refusal};

/// What would happen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What would happen.
    pub verdict: Result<Verdict, Refusal>,
    /// The questions in the order in which they were asked.
    pub steps: Vec<Step>,
    /// The command, or another step, that would turn a refusal into success.
    pub fix: Option<String>,
}

/// What would come of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The connect would reach this partition, and in it this listener or the guest itself.
    Connect {
        /// The partition.
        target: PartitionKey,
        /// Who takes it there.
        destination: Destination,
    },
    /// The listen would begin.
    Listen,
}

/// One question on the way to a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What was asked.
    pub question: String,
    /// What the answer was, and which rule gave it.
    pub answer: String,
    /// Whether the request could go on.
    pub pass: bool,
}

/// Who reads an explanation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Somebody who may see the registry and every partition.
    Operator,
    /// The process that asks. Outside of the partition that owns the registry it is told which rule
    /// decided and not whom the rule names, and nothing of partitions that it may not reach.
    Asker,
}

/// Somebody who follows how a request is judged.
pub(crate) trait Trace {
    /// Takes one question with its answer.
    fn note(&mut self, note: impl FnOnce(Audience) -> Note);

    /// Takes what to do about the refusal that comes.
    fn fix(&mut self, fix: impl FnOnce() -> String);
}

/// A question with its answer, and what to do if the answer is no.
pub(crate) struct Note {
    step: Step,
    fix: Option<String>,
}

/// Follows nothing.
pub(crate) struct Silent;

/// Keeps everything.
pub(crate) struct Notes {
    audience: Audience,
    steps: Vec<Step>,
    fix: Option<String>,
}

impl Trace for Silent {
    #[inline(always)]
    fn note(&mut self, _: impl FnOnce(Audience) -> Note) {}

    #[inline(always)]
    fn fix(&mut self, _: impl FnOnce() -> String) {}
}

impl Trace for Notes {
    fn note(&mut self, note: impl FnOnce(Audience) -> Note) {
        let Note { step, fix } = note(self.audience);
        self.steps.push(step);
        self.fix = fix.or(self.fix.take());
    }

    fn fix(&mut self, fix: impl FnOnce() -> String) {
        self.fix = Some(fix());
    }
}

impl Notes {
    pub(crate) fn new(audience: Audience) -> Self {
        Self {
            audience,
            steps: Vec::new(),
            fix: None,
        }
    }

    pub(crate) fn explain(self, verdict: Result<Verdict, Refusal>) -> Explanation {
        Explanation {
            fix: self.fix.filter(|_| verdict.is_err()),
            steps: self.steps,
            verdict,
        }
    }
}

impl Note {
    pub(crate) fn new(pass: bool, question: impl Into<String>, answer: impl Into<String>) -> Self {
        Self {
            step: Step {
                question: question.into(),
                answer: answer.into(),
                pass,
            },
            fix: None,
        }
    }

    /// Says what to do about it.
    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

/// How a service is written on a command line: by its friendly name where it has one.
pub(crate) fn service_word(id: ServiceId, registration: Option<&Registration>) -> String {
    match registration {
        Some(registration) => shell_word(registration.name.as_str()),
        None => ServiceRef::Id(id).to_string(),
    }
}

/// `text` as one word of a POSIX shell. Friendly names come from whoever registered the service,
/// and a command that is shown to be pasted must not carry another one.
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
    fn a_name_in_a_command_stays_one_word() {
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
