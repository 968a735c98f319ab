//! Encodes refusals and explanations for the endpoint protocol.

use hvsock_endpoint::Refused;
use hvsock_fabric::{AccessExplanation, Refusal};

/// A refusal as an endpoint message.
pub(crate) fn refused(refusal: &Refusal) -> Refused {
    Refused {
        code: refusal.code(),
        errno: refusal.errno().unsigned_abs(),
        detail: refusal.detail().into(),
    }
}

/// An explanation as an endpoint message.
///
/// The first line is the refusal's detail, empty on success. Each step adds a line (`pass` or
/// `fail`, question, answer), and the fix adds one. Fields are separated by tabs; tabs and line ends
/// inside a field become spaces.
pub(crate) fn explained(explanation: &AccessExplanation) -> Refused {
    let mut answer = match &explanation.verdict {
        Ok(_) => Refused {
            code: 0,
            errno: 0,
            detail: String::new(),
        },
        Err(refusal) => refused(refusal),
    };
    answer.detail = single_line(&answer.detail);
    for step in &explanation.steps {
        let pass = if step.pass { "pass" } else { "fail" };
        let (question, reply) = (single_line(&step.question), single_line(&step.answer));
        answer
            .detail
            .push_str(&format!("\n{pass}\t{question}\t{reply}"));
    }
    if let Some(fix) = &explanation.fix {
        answer
            .detail
            .push_str(&format!("\nfix\t{}", single_line(fix)));
    }
    answer
}

fn single_line(text: &str) -> String {
    text.replace(['\t', '\n', '\r'], " ")
}
