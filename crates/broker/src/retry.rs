//! Tries again what has failed and whose cause may be gone without any notification: files that could not
//! be read, partitions and registrations that could not be put in force, and a folder that others cannot
//! enter.
//!
//! The thread sleeps until the core raises a problem. Then it tries with backoff until there is none.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::core::Wakeup;
use crate::handle::{ControlError, Handle};
use crate::model::ProblemKind;
use crate::sandbox;
use crate::watchdog::{self, FILES, Role, Step};

/// The delay before the first try after a problem is raised.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// The longest delay between two tries.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// The kinds of problem that a try may solve.
const RETRIED: [ProblemKind; 5] = [
    ProblemKind::ConfigFile,
    ProblemKind::ConfigRefused,
    ProblemKind::FolderMode,
    ProblemKind::CdiDevice,
    ProblemKind::StaleMount,
];

/// The running thread. It ends when the core has dropped the [`Wakeup`].
#[derive(Debug)]
pub(crate) struct Retries {
    thread: Option<JoinHandle<()>>,
}

impl Retries {
    /// Starts the thread. Returns what wakes it.
    pub(crate) fn start(handle: Handle) -> io::Result<(Self, Wakeup)> {
        let (wakeup, woken) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("hvsock-retry".into())
            .spawn(move || {
                sandbox::enter(sandbox::Kind::Retry);
                run(&handle, &woken);
            })?;
        let thread = Some(thread);
        Ok((Self { thread }, wakeup))
    }
}

impl Drop for Retries {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(handle: &Handle, woken: &Receiver<()>) {
    // The problems of the start were raised before this thread.
    let mut delay = Some(FIRST_DELAY);
    let _watched = handle.watch(Role::Helper).enter();
    loop {
        watchdog::wait();
        let woken = match delay {
            Some(delay) => woken.recv_timeout(delay),
            None => woken.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        watchdog::begin_within(Step::Files, FILES);
        match woken {
            // A new problem is tried soon.
            Ok(()) => delay = Some(FIRST_DELAY),
            Err(RecvTimeoutError::Timeout) => match retry(handle) {
                Ok(true) => {
                    let next = delay.unwrap_or(FIRST_DELAY).saturating_mul(2);
                    delay = Some(next.min(MAX_DELAY));
                }
                Ok(false) => delay = None,
                Err(ControlError::Stopped) => return,
                // The core does not answer now.
                Err(_) => delay = Some(MAX_DELAY),
            },
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Tries everything once, if there are problems. Returns whether there still are.
fn retry(handle: &Handle) -> Result<bool, ControlError> {
    let has_problem = || handle.call(|core| core.has_problem(&RETRIED));
    if !has_problem()? {
        return Ok(false);
    }
    handle.check_run_folder();
    handle.retry_services();
    handle.retry_partitions();
    handle.check_mounts(true);
    has_problem()
}
