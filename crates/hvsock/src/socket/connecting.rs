//! A connect that nobody waits for, until it is known how it ended.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use crate::backend::{self, Dial};
use crate::os::Descriptor;

/// A socket that connects, or has.
#[derive(Debug)]
pub(super) struct Connecting {
    dial: Dial,
    deadline: Instant,
    stream: OnceLock<Arc<backend::Stream>>,
    failure: Mutex<Failure>,
}

/// Whether connecting failed, and with what if nobody was told yet.
#[derive(Debug, Default)]
struct Failure {
    failed: bool,
    error: Option<io::Error>,
}

/// How far a connect is.
pub(super) enum Progress<'a> {
    Pending,
    Connected(&'a Arc<backend::Stream>),
    Failed,
}

impl Connecting {
    pub(super) fn new(dial: Dial, deadline: Instant) -> Self {
        Self {
            dial,
            deadline,
            stream: OnceLock::new(),
            failure: Mutex::default(),
        }
    }

    fn failure(&self) -> MutexGuard<'_, Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks how far it is; `ready` is told of the connection when it has just come to be.
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
            .dial
            .progress()
            .and_then(|stream| ready(&stream).map(|()| stream))
        {
            Ok(stream) => return Progress::Connected(self.stream.get_or_init(|| Arc::new(stream))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() < self.deadline {
                    return Progress::Pending;
                }
                self.dial.silent()
            }
            Err(error) => error,
        };
        *failure = Failure {
            failed: true,
            error: Some(error),
        };
        Progress::Failed
    }

    /// Why it failed; only once.
    pub(super) fn take_failure(&self) -> Option<io::Error> {
        self.failure().error.take()
    }

    /// Waits until there may be progress, no longer than the connect may take or until
    /// `deadline`.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> io::Result<()> {
        let until = deadline.map_or(self.deadline, |at| at.min(self.deadline));
        self.dial.wait(until)
    }

    /// The descriptor that is ready for reading when there is progress.
    pub(super) fn descriptor(&self) -> Descriptor<'_> {
        self.dial.descriptor()
    }

    pub(super) fn into_stream(self) -> Option<Arc<backend::Stream>> {
        self.stream.into_inner()
    }
}
