//! The sending side of a report queue.

use std::fmt;
use std::sync::Arc;

/// Sends reports of type `T` of a thread with connections to the core thread, and wakes it.
pub struct ReportSender<T>(Arc<dyn Fn(T) + Send + Sync>);

impl<T> ReportSender<T> {
    /// A sender that passes each report to `send`, which must not block.
    pub(crate) fn new(send: impl Fn(T) + Send + Sync + 'static) -> Self {
        Self(Arc::new(send))
    }

    /// Sends a report. Does nothing once the core thread has ended.
    pub fn send(&self, report: T) {
        (self.0)(report);
    }
}

impl<T> Clone for ReportSender<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for ReportSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReportSender").finish_non_exhaustive()
    }
}
