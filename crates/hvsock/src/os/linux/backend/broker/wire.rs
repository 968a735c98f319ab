//! Conversions from the wire format to the library's types.

use hvsock_address::{ServiceId, VmId};
use hvsock_endpoint::{Incoming, Refused};

use super::errors;
use crate::explain::{Explanation, ExplanationStep};
use crate::{HvAddr, Peer};

impl Peer {
    pub(super) fn of_wire(incoming: Incoming) -> Self {
        let known = |id: u32| Some(id).filter(|id| *id != u32::MAX);
        Self {
            partition: incoming.partition,
            pid: Some(incoming.pid).filter(|pid| *pid != 0),
            uid: known(incoming.uid),
            gid: known(incoming.gid),
        }
    }
}

impl Explanation {
    /// Parses `EXPLAINED` as docs/endpoint.md specifies it. Lines of another format, such as one
    /// that was cut off at the end of the message, are ignored.
    pub(super) fn of_wire(explained: &Refused) -> Self {
        let mut lines = explained.detail.split('\n');
        let detail = lines.next().unwrap_or_default().to_owned();
        let refused = Refused {
            detail,
            ..*explained
        };
        let mut this = Self {
            refusal: (explained.code != 0).then(|| errors::refusal(&refused)),
            undecided: None,
            steps: Vec::new(),
            fix: None,
        };
        for line in lines {
            let mut fields = line.split('\t');
            match (fields.next(), fields.next(), fields.next()) {
                (Some(status @ ("pass" | "fail")), Some(question), Some(answer)) => {
                    let (question, answer) = (question.to_owned(), answer.to_owned());
                    this.steps.push(ExplanationStep {
                        question,
                        answer,
                        pass: status == "pass",
                    });
                }
                (Some("fix"), Some(fix), None) => this.fix = Some(fix.to_owned()),
                _ => {}
            }
        }
        this
    }
}

impl HvAddr {
    /// The same service in another partition.
    pub(super) fn at(&self, partition: VmId) -> Self {
        Self {
            partition: partition.into(),
            ..self.clone()
        }
    }

    /// Another service in the same partition.
    pub(super) fn of(&self, service: ServiceId) -> Self {
        Self {
            service: service.into(),
            ..self.clone()
        }
    }
}
