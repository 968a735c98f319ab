//! What operators learn of threads that hang.

use crate::Handle;
use crate::model::ProblemKind;
use crate::watchdog::{Reports, Stuck};

/// Makes problems of threads that are stuck, as long as the core answers.
pub(crate) struct HangReports(pub(crate) Handle);

impl Reports for HangReports {
    fn stuck(&self, stuck: &Stuck) {
        let (object, text) = (stuck.object(), stuck.problem());
        self.0
            .post(|core| core.raise(ProblemKind::StuckThread, object, text, None));
    }

    fn recovered(&self, stuck: &Stuck) {
        let object = stuck.object();
        self.0
            .post(move |core| core.clear(ProblemKind::StuckThread, &object));
    }
}
