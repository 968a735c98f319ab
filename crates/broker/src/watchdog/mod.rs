//! Finds threads of the broker that hang.
//!
//! Each thread has a [heartbeat](heartbeat): it notes that a turn begins before it works, and that the turn has ended
//! before it waits for something that may never come. That costs two stores to memory of its own, and no look at the
//! clock. One [supervisor] looks at all heartbeats, but only while there are turns: a thread that begins one while the
//! supervisor sleeps wakes it. So an idle broker has no timer.
//!
//! What the supervisor concludes is decided without any I/O by [`judgement`]: a thread is *stuck* when one turn takes
//! longer than its limit. What the operating system knows of such a thread ([`dump`]) goes to the log. The
//! consequence depends on its [`Role`]. Without a thread that all of the broker needs, the service manager is no longer
//! told that the broker is alive, and the process ends. A thread of one VM may hang because its VMM makes it, so it
//! is only a problem of that VM.
//!
//! Time in which the process could not run is not held against a thread: the clock does not run while the machine
//! is suspended, the supervisor knows how late it is after a SIGSTOP, and a thread that a debugger has
//! stopped is recognized.

use std::time::Duration;

mod dump;
mod faults;
mod heartbeat;
mod judgement;
mod notify;
mod own;
mod registry;
mod supervisor;

pub use notify::{OnFatal, ServiceManager, WatchdogConfig};

pub(crate) use heartbeat::Step;
pub(crate) use own::{ThreadWatch, begin, begin_within, step, wait};
pub(crate) use registry::{Role, Watchdog};
pub(crate) use supervisor::{Reports, Stuck, Supervisor};

/// How long a turn may take that reads and writes files, or asks other programs. Their file system may be slow.
pub(crate) const FILES: Duration = Duration::from_secs(120);
