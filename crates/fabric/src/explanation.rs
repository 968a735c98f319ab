//! Explanations: what a request would do, the checks on the way, and what would fix a refusal.
//!
//! One type serves the fabric, the facts of a Windows machine, the endpoint protocol, the library and
//! the command. [`Explanation::to_lines`] and [`Explanation::from_lines`] are its form in the endpoint
//! protocol.

use std::fmt::{self, Write};

use crate::{Fix, Refusal};

/// Whether a connect or listen would succeed, and why.
///
/// Its `Display` output has one line for each step, with question and answer, then the verdict and
/// the [`fix`](Self::fix).
#[doc(alias = "dry run")]
#[doc(alias = "access check")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The predicted result.
    pub verdict: Result<Verdict, Refusal>,
    /// The checks, in the order in which they were made.
    pub steps: Vec<ExplanationStep>,
    /// What would turn a refusal into a success, if that is known.
    pub fix: Option<Fix>,
}

/// The predicted result of a request that nothing known refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// The connect would succeed.
    Connect,
    /// The listener would be created.
    Listen,
    /// The guest decides, by its listeners, which are not known here.
    GuestDecides,
    /// The host of this virtual machine decides. It cannot be queried from here.
    HostDecides,
    /// The system decides. It does not reveal whether a listener exists or the address is free.
    SystemDecides,
}

/// One check of an explanation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplanationStep {
    /// What is checked.
    pub check: Check,
    /// The partition, listener or setting that the check is about, if it has a name.
    pub subject: Option<String>,
    /// The rule that decided, without the entries of its lists, if a rule did.
    pub rule: Option<String>,
    /// The question that the check answers.
    pub question: String,
    /// The answer, with the rule that decided.
    pub answer: String,
    /// Whether the request passes this check.
    pub pass: bool,
}

/// What one step of an explanation checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Check {
    /// The GUID can be that of a service.
    ServiceId,
    /// The partition of the requesting process exists.
    Requester,
    /// The address leads to a partition, or to partitions to accept from.
    Address,
    /// A partition is running.
    Running,
    /// Whether a registry must allow the request.
    NeedsRegistry,
    /// The service is registered.
    Registered,
    /// The service is enabled.
    Enabled,
    /// The requester may connect.
    MayConnect,
    /// The registry allows a listener.
    MayListen,
    /// A listener exists and may accept the connection.
    Listener,
    /// The guest, or the container in it, may accept the connection.
    Guest,
    /// The host of this virtual machine allows the request.
    Host,
    /// The service has a vsock port.
    VsockPort,
    /// The address of a listener is free.
    AddressFree,
    /// How the bytes travel, where the registry says so.
    Transport,
    /// The tables and the backlog have a free slot.
    Capacity,
    /// Rules of the system, which it does not reveal.
    System,
    /// A check of a newer version.
    Other,
}

impl Explanation {
    /// A refusal with one failed step that names its reason.
    pub fn refused(refusal: Refusal, step: ExplanationStep) -> Self {
        Self {
            verdict: Err(refusal),
            steps: vec![step],
            fix: None,
        }
    }

    /// Returns why the request would be refused, or `None` if nothing would refuse it.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.verdict.as_ref().err()
    }

    /// Returns true if nothing that can be queried would refuse the request: see
    /// [`undecided`](Self::undecided).
    pub fn would_succeed(&self) -> bool {
        self.verdict.is_ok()
    }

    /// Returns a sentence that names the system with the final decision, if nothing refuses the
    /// request but that system cannot be queried.
    ///
    /// This happens where a guest accepts the connection, and on Windows, which reports neither the
    /// listeners nor the rules of a guest's host.
    pub fn undecided(&self) -> Option<&str> {
        match self.verdict {
            Ok(Verdict::Connect | Verdict::Listen) | Err(_) => None,
            Ok(verdict) => Some(verdict.sentence()),
        }
    }

    /// Returns the steps, in the order in which they were evaluated.
    pub fn steps(&self) -> &[ExplanationStep] {
        &self.steps
    }

    /// Returns what would turn a refusal into a success, if that is known.
    pub fn fix(&self) -> Option<&Fix> {
        self.fix.as_ref()
    }

    /// The verdict as one sentence fragment.
    pub fn sentence(&self) -> String {
        match &self.verdict {
            Ok(verdict) => verdict.to_string(),
            Err(refusal) => format!("refused: {refusal}"),
        }
    }

    /// The fix and the steps as lines of tab-separated fields, as the endpoint protocol sends them:
    ///
    /// - `fix`, its kind, its text, and its data as fields of the form `KEY=VALUE`;
    /// - `pass` or `fail`, the question, the answer, and then fields of the form `KEY=VALUE`: `check`,
    ///   and `subject` and `rule` if the step has them.
    ///
    /// Tabs and line ends inside a field become spaces. Every line ends with `\n`, so that a reader
    /// knows a line that was cut off at the end of a message. The fix is first, because it matters
    /// most.
    pub fn to_lines(&self) -> String {
        let mut lines = String::new();
        let mut add = |words: &[&str], fields: &[(&str, &str)]| {
            let words = words.iter().map(|word| single_line(word));
            let words: Vec<_> = words.collect();
            lines.push_str(&words.join("\t"));
            for (key, value) in fields {
                let _ = write!(lines, "\t{key}={}", single_line(value));
            }
            lines.push('\n');
        };
        if let Some(fix) = &self.fix {
            let fields = fix.fields();
            let fields: Vec<_> = fields.iter().map(|(key, text)| (*key, &**text)).collect();
            add(&["fix", fix.kind(), &fix.to_string()], &fields);
        }
        for step in &self.steps {
            let pass = if step.pass { "pass" } else { "fail" };
            let mut fields = vec![("check", step.check.label())];
            fields.extend(step.subject.iter().map(|subject| ("subject", &**subject)));
            fields.extend(step.rule.iter().map(|rule| ("rule", &**rule)));
            add(&[pass, &step.question, &step.answer], &fields);
        }
        lines
    }

    /// Reads the fix and the steps from [lines](Self::to_lines), in any order. Ignores lines of another
    /// form. A step or fix without the parts that follow its text, from an older sender, has only its
    /// text, and so has a last line that was cut off.
    pub fn from_lines(verdict: Result<Verdict, Refusal>, lines: &str) -> Self {
        let mut explanation = Self {
            verdict,
            steps: Vec::new(),
            fix: None,
        };
        for line in lines.split_inclusive('\n') {
            let whole = line.strip_suffix('\n');
            let mut parts = whole.unwrap_or(line).split('\t');
            let head = (parts.next(), parts.next(), parts.next());
            // The last of the fields may be a part of its value.
            let parts = parts.filter(|_| whole.is_some());
            let fields: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
            let value = |key: &str| {
                let found = fields.iter().find(|(known, _)| *known == key);
                found.map(|(_, value)| *value)
            };
            match head {
                (Some(status @ ("pass" | "fail")), Some(question), Some(answer)) => {
                    explanation.steps.push(ExplanationStep {
                        check: value("check").map_or(Check::Other, Check::from_label),
                        subject: value("subject").map(str::to_owned),
                        rule: value("rule").map(str::to_owned),
                        question: question.to_owned(),
                        answer: answer.to_owned(),
                        pass: status == "pass",
                    });
                }
                (Some("fix"), Some(text), None) => {
                    explanation.fix = Some(Fix::from_fields("", text, |_| None));
                }
                (Some("fix"), Some(kind), Some(text)) => {
                    // Without all of its data it is only a text.
                    let kind = if whole.is_some() { kind } else { "" };
                    explanation.fix = Some(Fix::from_fields(kind, text, value));
                }
                _ => {}
            }
        }
        explanation
    }
}

fn single_line(text: &str) -> String {
    text.replace(['\t', '\n', '\r'], " ")
}

impl Verdict {
    /// The verdict as one sentence fragment.
    const fn sentence(self) -> &'static str {
        match self {
            Self::Connect => "the connect would succeed",
            Self::Listen => "the listen would succeed",
            Self::GuestDecides => {
                "the connect would go to the guest, which accepts it if a program in it listens"
            }
            Self::HostDecides => "no known obstacle here; the host decides",
            Self::SystemDecides => "no known obstacle; only the system knows the rest",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.sentence())
    }
}

impl ExplanationStep {
    /// A step without a subject or rule.
    pub fn new(
        check: Check,
        pass: bool,
        question: impl Into<String>,
        answer: impl Into<String>,
    ) -> Self {
        Self {
            check,
            subject: None,
            rule: None,
            question: question.into(),
            answer: answer.into(),
            pass,
        }
    }

    /// Adds what the step is about.
    #[must_use]
    pub fn about(mut self, subject: impl fmt::Display) -> Self {
        self.subject = Some(subject.to_string());
        self
    }

    /// Adds the rule that decided.
    #[must_use]
    pub fn by_rule(mut self, rule: impl fmt::Display) -> Self {
        self.rule = Some(rule.to_string());
        self
    }

    /// Returns the question.
    pub fn question(&self) -> &str {
        &self.question
    }

    /// Returns the answer and the rule that it follows from.
    pub fn answer(&self) -> &str {
        &self.answer
    }

    /// Returns true if this step permits the request.
    pub fn pass(&self) -> bool {
        self.pass
    }
}

impl Check {
    /// Every check of this version, with its label.
    const LABELS: [(Check, &'static str); 17] = [
        (Check::ServiceId, "service_id"),
        (Check::Requester, "requester"),
        (Check::Address, "address"),
        (Check::Running, "running"),
        (Check::NeedsRegistry, "needs_registry"),
        (Check::Registered, "registered"),
        (Check::Enabled, "enabled"),
        (Check::MayConnect, "may_connect"),
        (Check::MayListen, "may_listen"),
        (Check::Listener, "listener"),
        (Check::Guest, "guest"),
        (Check::Host, "host"),
        (Check::VsockPort, "vsock_port"),
        (Check::AddressFree, "address_free"),
        (Check::Transport, "transport"),
        (Check::Capacity, "capacity"),
        (Check::System, "system"),
    ];

    /// The check, as the endpoint protocol and the control API spell it.
    pub fn label(self) -> &'static str {
        let found = Self::LABELS.iter().find(|(check, _)| *check == self);
        found.map_or("other", |(_, label)| label)
    }

    /// The check with this label. An unknown one is [`Check::Other`].
    pub fn from_label(label: &str) -> Self {
        let found = Self::LABELS.iter().find(|(_, known)| *known == label);
        found.map_or(Self::Other, |(check, _)| *check)
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        match (&self.verdict, self.undecided()) {
            (Err(refusal), _) => write!(f, "refused: {refusal}")?,
            (Ok(_), Some(undecided)) => f.write_str(undecided)?,
            (Ok(_), None) => f.write_str("it would succeed")?,
        }
        match &self.fix {
            Some(fix) => write!(f, "\nhelp: {fix}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ExplanationStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.question, self.answer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fix::tests::fixes;

    fn steps() -> impl Strategy<Value = ExplanationStep> {
        use proptest::option;

        let checks = prop::sample::select(Check::LABELS.map(|(check, _)| check).to_vec());
        let text = "[ -~é]{0,20}";
        let named = (option::of(text), option::of(text), any::<bool>());
        (checks, text, text, named).prop_map(|(check, question, answer, (subject, rule, pass))| {
            ExplanationStep {
                check,
                subject,
                rule,
                question,
                answer,
                pass,
            }
        })
    }

    proptest! {
        #[test]
        fn an_explanation_is_the_same_after_its_lines_are_read(
            steps in prop::collection::vec(steps(), 0..6), fix in proptest::option::of(fixes()),
        ) {
            let verdict = Err(Refusal::NoListener);
            let explanation = Explanation { verdict, steps, fix };
            let again =
                Explanation::from_lines(explanation.verdict.clone(), &explanation.to_lines());
            prop_assert_eq!(again, explanation);
        }

        #[test]
        fn what_is_cut_off_is_never_taken_for_something_else(
            steps in prop::collection::vec(steps(), 0..3), fix in fixes(), cut: prop::sample::Index,
        ) {
            let verdict = Err(Refusal::NoListener);
            let explanation = Explanation { verdict, steps, fix: Some(fix) };
            let lines = explanation.to_lines();
            let ends: Vec<_> = lines.char_indices().map(|(at, _)| at).collect();
            let read = Explanation::from_lines(
                explanation.verdict.clone(), &lines[..ends[cut.index(ends.len())]],
            );
            let is_text = |fix: &Fix| matches!(fix, Fix::Other { .. });
            prop_assert!(read.fix.as_ref().is_none_or(is_text) || read.fix == explanation.fix);
            for (step, original) in read.steps.iter().zip(&explanation.steps) {
                let is_text = step.check == Check::Other && step.rule.is_none();
                prop_assert!(is_text || step == original);
            }
        }

        #[test]
        fn any_lines_are_read_without_a_panic(text in "(?s)((pass|fail|fix|)[\t\n=a-z]{0,9}){0,9}") {
            let read = Explanation::from_lines(Ok(Verdict::Connect), &text);
            prop_assert!(read.steps.len() <= text.lines().count() + 1);
        }
    }

    #[test]
    fn tabs_and_line_ends_in_a_field_become_spaces() {
        let step = ExplanationStep::new(Check::Capacity, true, "a\tb?", "c\r\nfix\td");
        let explanation = Explanation::refused(Refusal::NoListener, step.about("x\ny"));
        let line = "pass\ta b?\tc  fix d\tcheck=capacity\tsubject=x y\n";
        assert_eq!(explanation.to_lines(), line);
    }

    #[test]
    fn lines_of_an_older_sender_have_only_their_texts() {
        let lines = "pass\tq\ta\nfix\tadd yourself\nnewer\tx\nfail\tcut of";
        let explanation = Explanation::from_lines(Err(Refusal::NoListener), lines);
        let step = ExplanationStep::new(Check::Other, true, "q", "a");
        assert_eq!(explanation.steps, [step]);
        let fix = explanation.fix.unwrap();
        assert_eq!((fix.kind(), fix.to_string().as_str()), ("", "add yourself"));
    }
}
