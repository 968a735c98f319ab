//! The state of a non-blocking connect.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

use hvsock_sys::sync::lock;

use crate::backend::{self, PendingConnect};
use crate::os::Descriptor;

/// A socket that connects or has connected.
#[derive(Debug)]
pub(super) struct Connecting {
    pending: PendingConnect,
    deadline: Instant,
    stream: OnceLock<Arc<backend::Stream>>,
    failure: Mutex<Failure>,
}

/// Whether the connect failed, and the error until it is taken.
#[derive(Debug, Default)]
struct Failure {
    failed: bool,
    error: Option<io::Error>,
}

/// The progress of a connect.
pub(super) enum Progress<'a> {
    Pending,
    Connected(&'a Arc<backend::Stream>),
    Failed,
}

impl Connecting {
    pub(super) fn new(pending: PendingConnect, deadline: Instant) -> Self {
        Self {
            pending,
            deadline,
            stream: OnceLock::new(),
            failure: Mutex::default(),
        }
    }

    fn failure(&self) -> MutexGuard<'_, Failure> {
        lock(&self.failure)
    }

    /// Checks for progress. Calls `ready` once, with the new connection.
    pub(super) fn progress(
        &self,
        ready: impl FnOnce(&backend::Stream) -> io::Result<()>,
    ) -> Progress<'_> {
        let mut failure = self.failure();
        if let Some(stream) = self.stream.get() {
            return Progress::Connected(stream);
        }
        if failure.failed {
            return Progress::Failed;
        }
        let error = match self
            .pending
            .progress()
            .and_then(|stream| ready(&stream).map(|()| stream))
        {
            Ok(stream) => return Progress::Connected(self.stream.get_or_init(|| Arc::new(stream))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() < self.deadline {
                    return Progress::Pending;
                }
                self.pending.no_reply_error()
            }
            Err(error) => error,
        };
        *failure = Failure {
            failed: true,
            error: Some(error),
        };
        Progress::Failed
    }

    /// Takes the error of the connect; returns it once.
    pub(super) fn take_failure(&self) -> Option<io::Error> {
        self.failure().error.take()
    }

    /// Waits for progress, until `deadline` or the timeout of the connect.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> io::Result<()> {
        let until = deadline.map_or(self.deadline, |at| at.min(self.deadline));
        self.pending.wait(until)
    }

    /// The descriptor that is readable when there is progress.
    pub(super) fn descriptor(&self) -> Descriptor<'_> {
        self.pending.descriptor()
    }

    pub(super) fn into_stream(self) -> Option<Arc<backend::Stream>> {
        self.stream.into_inner()
    }
}
