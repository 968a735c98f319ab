//! Refusals and explanations on their way to a process.

use hvsock_endpoint::Refused;
use hvsock_fabric::{Explanation, Refusal};

/// A refusal as the endpoint's messages carry it.
pub(crate) fn refused(refusal: &Refusal) -> Refused {
    Refused {
        code: refusal.code(),
        errno: refusal.errno().unsigned_abs(),
        detail: refusal.detail().into(),
    }
}

/// An explanation as the endpoint's messages carry it: the refusal's detail on the first line,
/// which is empty for a success, then one line a step (`pass` or `fail`, question, answer) and one
/// with the fix, their fields set apart by tabs. A tab or line end inside a field is a space.
pub(crate) fn explained(explanation: &Explanation) -> Refused {
    let mut answer = match &explanation.verdict {
        Ok(_) => Refused {
            code: 0,
            errno: 0,
            detail: String::new(),
        },
        Err(refusal) => refused(refusal),
    };
    answer.detail = flat(&answer.detail);
    for step in &explanation.steps {
        let pass = if step.pass { "pass" } else { "fail" };
        let (question, reply) = (flat(&step.question), flat(&step.answer));
        answer
            .detail
            .push_str(&format!("\n{pass}\t{question}\t{reply}"));
    }
    if let Some(fix) = &explanation.fix {
        answer.detail.push_str(&format!("\nfix\t{}", flat(fix)));
    }
    answer
}

fn flat(text: &str) -> String {
    text.replace(['\t', '\n', '\r'], " ")
}
