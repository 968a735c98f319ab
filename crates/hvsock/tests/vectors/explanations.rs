//! The text of EXPLAINED.

use hvsock::{Explanation, Refusal};
use hvsock_fabric::Check;
use serde_json::Value;

use crate::json::{rows, sections, text};

/// The kinds of fixes in the vectors that no version of the protocol has.
const UNKNOWN_KINDS: [&str; 2] = ["", "moon_walk"];
const FILE: &str = include_str!("../../../../docs/vectors/explanations.json");

#[test]
fn explanations_are_read_as_in_the_vectors() {
    assert_eq!(sections(FILE), ["explanations"]);
    for row in rows(FILE, "explanations") {
        let all = text(&row, "text");
        let (detail, lines) = all.split_once('\n').unwrap_or((all, ""));
        assert_eq!(detail, text(&row, "detail"), "{row}");
        let refused = Err(Refusal::from_wire(2, detail));
        let explanation = Explanation::from_lines(refused, lines);
        check_fix(&row["fix"], &explanation);
        let steps = row["steps"].as_array().expect("a list of steps");
        assert_eq!(explanation.steps.len(), steps.len(), "{row}");
        for (step, want) in explanation.steps.iter().zip(steps) {
            assert_eq!(want["pass"], step.pass, "{row}");
            assert_eq!(text(want, "question"), step.question, "{row}");
            assert_eq!(text(want, "answer"), step.answer, "{row}");
            assert_eq!(want["subject"].as_str(), step.subject.as_deref(), "{row}");
            assert_eq!(want["rule"].as_str(), step.rule.as_deref(), "{row}");
            let label = match step.check {
                Check::Other => "other",
                check => check.label(),
            };
            assert_eq!(text(want, "check"), label, "{row}");
        }
    }
}

/// A fix of an unknown kind has its text only.
fn check_fix(want: &Value, explanation: &Explanation) {
    let Some(fix) = &explanation.fix else {
        assert!(want.is_null(), "{want}");
        return;
    };
    let text = text(want, "text");
    let kind = want["kind"].as_str().expect("a kind");
    if UNKNOWN_KINDS.contains(&kind) {
        assert_eq!(fix.to_string(), text);
        assert!(fix.fields().is_empty(), "{fix}");
        return;
    }
    assert_eq!(fix.kind(), kind);
    for (key, value) in fix.fields() {
        assert_eq!(want["data"][key], value.to_string(), "{want}");
    }
    let known = want["data"].as_object().expect("the data");
    assert_eq!(fix.fields().len(), known.len(), "{want}");
}
