//! The chain of two explanations: the host's, and that of the broker in the guest.

use hvsock_endpoint::Refused;
use hvsock_fabric::{Check, Explanation, ExplanationStep, Fix, Refusal, Verdict};
use hvsock_text::printable;

/// The most bytes of a text of a guest.
const MAX_TEXT: usize = 300;
/// The most steps of a guest.
const MAX_STEPS: usize = 32;

/// Why the guest's part is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Silence {
    /// The broker has not answered in time.
    NoAnswer,
    /// It has as many requests as it may.
    Busy,
}

/// Adds what the broker in `vm` says to the host's explanation, which leaves it to the guest.
pub(crate) fn add_guest(host: &mut Explanation, vm: &str, answer: Result<&Refused, Silence>) {
    let question = format!("What does the broker in {vm} say?");
    let answer = match answer {
        Ok(answer) => answer,
        Err(silence) => {
            let why = match silence {
                Silence::NoAnswer => "nothing: it has not answered in time",
                Silence::Busy => "unknown: it has too many requests without an answer",
            };
            return host.steps.push(step(question, why.into(), true));
        }
    };
    let (detail, lines) = match answer.detail.split_once('\n') {
        Some((detail, lines)) => (detail, lines),
        None => (answer.detail.as_str(), ""),
    };
    let verdict = match answer.code {
        0 => Ok(Verdict::Connect),
        code => Err(Refusal::from_wire(code, &text(detail))),
    };
    let guest = Explanation::from_lines(verdict, lines);
    let said = match &guest.verdict {
        Ok(_) => "it would accept it".to_owned(),
        Err(refusal) => format!("no: {refusal}"),
    };
    host.steps.push(step(question, said, guest.verdict.is_ok()));
    for step in guest.steps.into_iter().take(MAX_STEPS) {
        host.steps.push(ExplanationStep {
            check: step.check,
            subject: step.subject.as_deref().map(text),
            rule: step.rule.as_deref().map(text),
            question: format!("in {vm}: {}", text(&step.question)),
            answer: text(&step.answer),
            pass: step.pass,
        });
    }
    // It is to be done in the guest, so no command of the host does it.
    host.fix = guest.fix.map(|fix| Fix::Other {
        kind: "in_guest".into(),
        text: format!("in {vm}: {}", text(&fix.to_string())),
    });
    host.verdict = guest.verdict;
}

/// Says that a connect from a container in `vm` is judged in the guest before the host.
pub(crate) fn add_unknown_guest(host: &mut Explanation, vm: &str) {
    let question = format!("Does the registry of {vm} allow it?");
    let answer = "unknown here: the broker in the guest judges it first";
    host.steps.push(step(question, answer.into(), true));
}

fn step(question: String, answer: String, pass: bool) -> ExplanationStep {
    ExplanationStep {
        check: Check::Guest,
        subject: None,
        rule: None,
        question,
        answer,
        pass,
    }
}

/// A text of a guest, which ends on a terminal of the host.
fn text(text: &str) -> String {
    printable(text).at_most(MAX_TEXT).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Explanation {
        Explanation {
            verdict: Ok(Verdict::GuestDecides),
            steps: vec![step("Is web/box running?".into(), "yes".into(), true)],
            fix: None,
        }
    }

    fn answer(code: u32, detail: &str) -> Refused {
        Refused {
            code,
            errno: 0,
            detail: detail.to_owned(),
        }
    }

    #[test]
    fn the_guests_checks_follow_those_of_the_host_and_its_verdict_counts() {
        let mut explanation = host();
        let lines =
            "the rule\nfix\tallow_user\tadd yourself\npass\tIs it enabled?\tyes\tcheck=enabled\n";
        add_guest(&mut explanation, "web", Ok(&answer(3, lines)));
        let shown = explanation.to_string();
        assert_eq!(
            shown,
            "Is web/box running? yes\n\
             What does the broker in web say? no: access is denied by the rule\n\
             in web: Is it enabled? yes\n\
             refused: access is denied by the rule\n\
             help: in web: add yourself"
        );
        let mut explanation = host();
        add_guest(&mut explanation, "web", Ok(&answer(0, "\n")));
        assert_eq!(explanation.verdict, Ok(Verdict::Connect));
    }

    #[test]
    fn a_silent_broker_leaves_the_verdict_to_the_guest() {
        for silence in [Silence::NoAnswer, Silence::Busy] {
            let mut explanation = host();
            add_guest(&mut explanation, "web", Err(silence));
            assert_eq!(explanation.verdict, Ok(Verdict::GuestDecides));
            assert!(explanation.steps[1].question.contains("broker in web"));
        }
    }

    #[test]
    fn the_texts_of_a_guest_are_shown_without_control_characters_and_are_bounded() {
        let mut explanation = host();
        let line = format!(
            "fail\tq\u{1b}[2J\t{}\tsubject=s\u{202e}\n",
            "a".repeat(4000)
        );
        let detail = format!("d\u{7}\nfix\tx\tf\u{1b}[0m\n{}", line.repeat(100));
        add_guest(&mut explanation, "web", Ok(&answer(3, &detail)));
        assert!(explanation.steps.len() <= MAX_STEPS + 2);
        let shown = format!("{explanation}{explanation:?}");
        assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{shown}");
        assert!(
            explanation
                .steps
                .iter()
                .all(|step| step.answer.len() < 1000)
        );
    }
}
