//! Whether a connect or listen would succeed, and why.

use hvsock_fabric::{Destination, Verdict};
use serde::{Deserialize, Serialize};

/// A refusal with its label, text and errno.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RefusalReport {
    /// The label used in metrics and logs, such as `no_listener`.
    pub reason: String,
    /// The refusal as one sentence.
    pub message: String,
    /// The errno that the program gets.
    pub errno: i32,
    /// The command or step that removes the cause, if there is one.
    pub fix: Option<String>,
}

/// One check on the way to a verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExplanationStep {
    /// The question of the check.
    pub question: String,
    /// The answer, and the rule that gave it.
    pub answer: String,
    /// Whether the check passed.
    pub pass: bool,
}

/// Whether a connect or listen would succeed, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExplanationReport {
    /// The verdict as one sentence.
    pub verdict: String,
    /// The refusal; absent if the request would succeed.
    pub refusal: Option<RefusalReport>,
    /// The checks, in order.
    pub steps: Vec<ExplanationStep>,
}

impl From<&hvsock_fabric::AccessExplanation> for ExplanationReport {
    fn from(explanation: &hvsock_fabric::AccessExplanation) -> Self {
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
        let steps = explanation.steps.iter().map(|step| ExplanationStep {
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

/// The verdict as one sentence.
fn verdict(explanation: &hvsock_fabric::AccessExplanation) -> String {
    match &explanation.verdict {
        Ok(Verdict::Connect { destination, .. }) => match destination {
            Destination::Listener(_) => "the connect would succeed".into(),
            Destination::Guest => {
                "the connect would go to the guest, which accepts it if a program in it listens"
                    .into()
            }
        },
        Ok(Verdict::Listen) => "the listen would succeed".into(),
        Err(refusal) => format!("refused: {refusal}"),
    }
}
