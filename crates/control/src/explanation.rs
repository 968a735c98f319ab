//! Whether a connect or listen would succeed, and why, in the form of the control API.

use std::collections::BTreeMap;

use hvsock_fabric::{Explanation, Fix};
use serde::{Deserialize, Serialize};

/// What would remove the cause of a refusal or error.
///
/// A program acts on the kind and the data; `docs/endpoint.md` lists both. The text is for people.
/// Further kinds may be added, so a program shows the text of a kind that it does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FixReport {
    /// The kind of action, such as `enable_service`.
    pub kind: String,
    /// The action in plain English.
    pub text: String,
    /// The objects that the action concerns, such as `service` and `partition`.
    #[serde(flatten)]
    pub data: BTreeMap<String, String>,
}

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
    /// What removes the cause, if that is known.
    pub fix: Option<FixReport>,
}

/// One check on the way to a verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExplanationStep {
    /// What is checked, such as `registered` or `may_connect`.
    #[serde(default)]
    pub check: String,
    /// The partition, listener or setting that the check is about, if it has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The rule that decided, without the entries of its lists, if a rule did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
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
    /// Who can tell more, if nothing refuses the request but another system decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<FixReport>,
    /// The checks, in order.
    pub steps: Vec<ExplanationStep>,
}

impl ExplanationReport {
    /// What removes the cause of the refusal or, without one, shows more.
    pub fn fix(&self) -> Option<&FixReport> {
        match &self.refusal {
            Some(refusal) => refusal.fix.as_ref(),
            None => self.fix.as_ref(),
        }
    }
}

impl From<&Explanation> for ExplanationReport {
    fn from(explanation: &Explanation) -> Self {
        let fix = explanation.fix().map(FixReport::from);
        let refusal = explanation.refusal().map(|refusal| RefusalReport {
            reason: refusal.label().into(),
            message: refusal.to_string(),
            errno: refusal.errno(),
            fix: fix.clone(),
        });
        let steps = explanation.steps().iter().map(|step| ExplanationStep {
            check: step.check.label().to_owned(),
            subject: step.subject.clone(),
            rule: step.rule.clone(),
            question: step.question.clone(),
            answer: step.answer.clone(),
            pass: step.pass,
        });
        Self {
            verdict: explanation.sentence(),
            fix: fix.filter(|_| refusal.is_none()),
            refusal,
            steps: steps.collect(),
        }
    }
}

impl From<&Fix> for FixReport {
    fn from(fix: &Fix) -> Self {
        let data = fix.fields().into_iter();
        Self {
            kind: fix.kind().to_owned(),
            text: fix.to_string(),
            data: data.map(|(key, value)| (key.to_owned(), value)).collect(),
        }
    }
}

impl From<&FixReport> for Fix {
    /// The fix. An unknown kind becomes [`Fix::Other`].
    fn from(report: &FixReport) -> Self {
        let field = |key: &str| report.data.get(key).map(String::as_str);
        Self::from_fields(&report.kind, &report.text, field)
    }
}

#[cfg(test)]
mod tests {
    use hvsock_address::{PartitionName, ServiceId, ServiceRef};
    use hvsock_fabric::{Check, Refusal};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_fix_is_an_object_with_its_kind_text_and_data() {
        let fix = Fix::EnableService {
            service: ServiceRef::Id(ServiceId::from_port(2761)),
            partition: Some(PartitionName::new("web").unwrap()),
        };
        let value = serde_json::to_value(FixReport::from(&fix)).unwrap();
        let want = json!({
            "kind": "enable_service",
            "text": "enable the service 2761 for web",
            "service": "2761",
            "partition": "web",
        });
        assert_eq!(value, want);
        let report: FixReport = serde_json::from_value(value).unwrap();
        assert_eq!(Fix::from(&report), fix);
    }

    #[test]
    fn a_kind_of_a_newer_broker_is_kept_as_its_text() {
        let newer = json!({"kind": "reboot", "text": "restart it", "node": "moon"});
        let report: FixReport = serde_json::from_value(newer.clone()).unwrap();
        assert_eq!(Fix::from(&report).to_string(), "restart it");
        assert_eq!(serde_json::to_value(report).unwrap(), newer);
    }

    #[test]
    fn a_report_has_the_refusal_and_the_steps() {
        let step = hvsock_fabric::ExplanationStep::new(Check::Registered, false, "q?", "no");
        let mut explanation = Explanation::refused(Refusal::Unregistered, step.about("top"));
        explanation.fix = Some(Fix::ListServices);
        let value = serde_json::to_value(ExplanationReport::from(&explanation)).unwrap();
        let want = json!({
            "verdict": "refused: the service is not registered",
            "refusal": {
                "reason": "unregistered",
                "message": "the service is not registered",
                "errno": 111,
                "fix": {"kind": "list_services", "text": "see which services are registered"},
            },
            "steps": [{
                "check": "registered", "subject": "top",
                "question": "q?", "answer": "no", "pass": false,
            }],
        });
        assert_eq!(value, want);
    }
}
