//! Encodes refusals and explanations for the endpoint protocol.

use hvsock_endpoint::Refused;
use hvsock_fabric::{Explanation, Refusal};

/// A refusal as an endpoint message.
pub(crate) fn refused(refusal: &Refusal) -> Refused {
    Refused {
        code: refusal.code(),
        errno: refusal.errno().unsigned_abs(),
        detail: refusal.detail().into(),
    }
}

/// An explanation as an endpoint message: the refusal's detail in the first line, empty on success,
/// then the [lines](Explanation::to_lines) of the explanation.
pub(crate) fn explained(explanation: &Explanation) -> Refused {
    let mut answer = match &explanation.verdict {
        Ok(_) => Refused {
            code: 0,
            errno: 0,
            detail: String::new(),
        },
        Err(refusal) => refused(refusal),
    };
    answer.detail = answer.detail.replace(['\t', '\n', '\r'], " ");
    let lines = explanation.to_lines();
    if !lines.is_empty() {
        answer.detail.push('\n');
        answer.detail.push_str(&lines);
    }
    answer
}
