//! What a program that embeds the broker says about the watchdog.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How threads that hang are found, and who is told.
#[derive(Clone, Debug)]
pub struct WatchdogConfig {
    /// How long one turn of a thread may take, before the thread counts as stuck. The default is 10 s. Work that may
    /// block for good reasons has longer limits of its own.
    pub limit: Duration,
    /// Who is told regularly that the broker is alive. None by default: an idle broker has no timer then.
    pub service_manager: Option<ServiceManager>,
    /// Told when the broker cannot go on: a thread that all of it needs has panicked, or has been stuck for three
    /// times `limit`. It should end the process, so that another broker takes its place. By default nobody is told.
    pub on_fatal: Option<OnFatal>,
}

impl Default for WatchdogConfig {
    fn default() -> Self {
        Self {
            limit: Duration::from_secs(10),
            service_manager: None,
            on_fatal: None,
        }
    }
}

/// A service manager that restarts a broker that has sent no keep-alive for a while (`WatchdogSec=` of systemd).
#[derive(Clone)]
pub struct ServiceManager {
    /// How often to tell it.
    pub interval: Duration,
    /// Tells it that the broker is alive. Called while no thread is stuck without which the broker cannot go on.
    pub alive: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for ServiceManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("ServiceManager");
        f.field("interval", &self.interval).finish_non_exhaustive()
    }
}

/// A function that is told why the broker cannot go on.
#[derive(Clone)]
pub struct OnFatal(pub Arc<dyn Fn(&str) + Send + Sync>);

impl fmt::Debug for OnFatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnFatal")
    }
}
