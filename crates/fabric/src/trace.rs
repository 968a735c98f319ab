//! Records the checks of a request.
//!
//! A real request and an explanation run the same checks and report each check to a [`Trace`]. A real
//! request uses [`NoTrace`], which has no cost and formats no text. An explanation uses [`Recorder`].

use hvsock_address::{ServiceId, ServiceRef};
use hvsock_registry::Registration;

use crate::{Check, Explanation, ExplanationStep, Fix, Refusal, Verdict};

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

    /// Sets the fix for the refusal that follows.
    fn fix(&mut self, fix: impl FnOnce(Audience) -> Fix);
}

/// One check, with a fix if it fails.
pub(crate) struct TraceEntry {
    step: ExplanationStep,
    fix: Option<Fix>,
}

/// Discards all entries.
pub(crate) struct NoTrace;

/// Keeps all entries for an explanation.
pub(crate) struct Recorder {
    audience: Audience,
    steps: Vec<ExplanationStep>,
    fix: Option<Fix>,
}

impl Trace for NoTrace {
    #[inline(always)]
    fn record(&mut self, _: impl FnOnce(Audience) -> TraceEntry) {}

    #[inline(always)]
    fn fix(&mut self, _: impl FnOnce(Audience) -> Fix) {}
}

impl Trace for Recorder {
    fn record(&mut self, entry: impl FnOnce(Audience) -> TraceEntry) {
        let TraceEntry { step, fix } = entry(self.audience);
        self.steps.push(step);
        self.fix = fix.or(self.fix.take());
    }

    fn fix(&mut self, fix: impl FnOnce(Audience) -> Fix) {
        self.fix = Some(fix(self.audience));
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

    pub(crate) fn explain(self, verdict: Result<Verdict, Refusal>) -> Explanation {
        Explanation {
            fix: self.fix.filter(|_| verdict.is_err()),
            steps: self.steps,
            verdict,
        }
    }
}

impl TraceEntry {
    pub(crate) fn new(
        check: Check,
        pass: bool,
        question: impl Into<String>,
        answer: impl Into<String>,
    ) -> Self {
        Self {
            step: ExplanationStep::new(check, pass, question, answer),
            fix: None,
        }
    }

    /// Adds what the check is about.
    pub(crate) fn about(mut self, subject: impl std::fmt::Display) -> Self {
        self.step = self.step.about(subject);
        self
    }

    /// Adds the rule that decided, if one did.
    pub(crate) fn by_rule(mut self, rule: Option<impl std::fmt::Display>) -> Self {
        if let Some(rule) = rule {
            self.step = self.step.by_rule(rule);
        }
        self
    }

    /// Adds a fix, if there is one.
    pub(crate) fn fix(mut self, fix: impl Into<Option<Fix>>) -> Self {
        self.fix = fix.into();
        self
    }
}

/// A service as a fix names it: by its friendly name if it is registered, else by its id.
pub(crate) fn service_ref(id: ServiceId, registration: Option<&Registration>) -> ServiceRef {
    match registration {
        Some(registration) => ServiceRef::Name(registration.name.clone()),
        None => ServiceRef::Id(id),
    }
}
