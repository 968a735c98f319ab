//! The sending side of a report queue.

use std::fmt;
use std::sync::Arc;

use crate::watchdog::ThreadWatch;

/// Sends reports of type `T` of a thread with connections to the core thread, and wakes it.
pub struct ReportSender<T> {
    queue: Arc<Queue<T>>,
    /// How the thread that reports is watched.
    watch: ThreadWatch,
}

/// Queues a report, if there is one, and wakes the core thread if that is set.
type Queue<T> = dyn Fn(Option<T>, bool) + Send + Sync;

impl<T> ReportSender<T> {
    /// A sender that passes each report to `send`, which must not block.
    #[cfg(test)]
    pub(crate) fn new(send: impl Fn(T) + Send + Sync + 'static) -> Self {
        Self::to_queue(move |report, _| report.into_iter().for_each(&send))
    }

    /// A sender to a queue. `queue` adds a report, if there is one, and wakes the core thread if the flag is
    /// set. It must not block.
    pub(crate) fn to_queue(queue: impl Fn(Option<T>, bool) + Send + Sync + 'static) -> Self {
        Self {
            queue: Arc::new(queue),
            watch: ThreadWatch::default(),
        }
    }

    /// A sender of threads that are watched like this.
    pub(crate) fn watched(self, watch: ThreadWatch) -> Self {
        Self { watch, ..self }
    }

    /// How the threads that report are watched.
    pub(crate) fn watch(&self) -> &ThreadWatch {
        &self.watch
    }

    /// Sends a report. Does nothing once the core thread has ended.
    pub fn send(&self, report: T) {
        (self.queue)(Some(report), true);
    }

    /// Queues a report, which the core thread reads when it runs next: at the latest after
    /// [`flush`](Self::flush).
    pub(crate) fn post(&self, report: T) {
        (self.queue)(Some(report), false);
    }

    /// Wakes the core thread for what was posted.
    pub(crate) fn flush(&self) {
        (self.queue)(None, true);
    }
}

impl<T> Clone for ReportSender<T> {
    fn clone(&self) -> Self {
        Self {
            queue: Arc::clone(&self.queue),
            watch: self.watch.clone(),
        }
    }
}

impl<T> fmt::Debug for ReportSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReportSender").finish_non_exhaustive()
    }
}
