//! What would become of a connect or listen, and why.

use hvsock_fabric::{Destination, Verdict};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A refusal in words and in numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RefusalReport {
    /// The word that metrics and logs use, such as `no_listener`.
    pub reason: String,
    /// One sentence.
    pub message: String,
    /// The errno that a program gets.
    pub errno: i32,
    /// What to do about it, where a command would help.
    pub fix: Option<String>,
}

/// One question on the way to a verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// What was asked.
    pub question: String,
    /// What the answer was, and which rule gave it.
    pub answer: String,
    /// Whether the connect or listen could go on.
    pub pass: bool,
}

/// What would happen, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// One sentence.
    pub verdict: String,
    /// Why it would be refused; absent if it would succeed.
    pub refusal: Option<RefusalReport>,
    /// The questions in the order in which they were asked.
    pub steps: Vec<Step>,
}

impl From<&hvsock_fabric::Explanation> for Explanation {
    fn from(explanation: &hvsock_fabric::Explanation) -> Self {
        let refusal = explanation
            .verdict
            .as_ref()
            .err()
            .map(|refusal| RefusalReport {
                reason: refusal.label().into(),
                message: refusal.to_string(),
                errno: refusal.errno(),
                fix: explanation.fix.clone(),
            });
        let steps = explanation.steps.iter().map(|step| Step {
            question: step.question.clone(),
            answer: step.answer.clone(),
            pass: step.pass,
        });
        Self {
            verdict: verdict(explanation),
            refusal,
            steps: steps.collect(),
        }
    }
}

/// What would happen, in one sentence.
fn verdict(explanation: &hvsock_fabric::Explanation) -> String {
    match &explanation.verdict {
        Ok(Verdict::Connect { destination, .. }) => match destination {
            Destination::Listener(_) => "the connect would succeed".into(),
            Destination::Guest => {
                "the connect would go to the guest, which takes it if somebody in it listens".into()
            }
        },
        Ok(Verdict::Listen) => "the listen would succeed".into(),
        Err(refusal) => format!("refused: {refusal}"),
    }
}
