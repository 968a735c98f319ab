//! The processes, the signals and the socket of the keeper.
//!
//! The program learns its descriptors as from systemd (`sd_listen_fds(3)`), by variables of which one is its own
//! process id. So this program starts itself by the internal command [`START_COMMAND`], which sets that one and
//! becomes the program.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hvsock_sys::notify_socket::NotifySocket;
use hvsock_sys::{activation, init, service_manager};
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};

use super::service::{Action, MAX_STORED, Service};
use crate::failure::Failure;

/// The internal command by which this program becomes the service.
pub const START_COMMAND: &str = "keeper-start";

/// The variables of the watchdog (`sd_watchdog_enabled(3)`).
const WATCHDOG: &str = "WATCHDOG_USEC";
const WATCHDOG_PID: &str = "WATCHDOG_PID";

/// What is kept running.
struct Keeper {
    service: Service<OwnedFd>,
    socket: AsyncFd<NotifySocket>,
    command: Vec<OsString>,
    watchdog: Option<Duration>,
}

/// Keeps a command running, which has to say how often it lives with `watchdog`. Returns the status of this program.
pub fn keep(command: Vec<OsString>, watchdog: Option<Duration>) -> Result<u8> {
    // Only this user can enter it.
    let folder = tempfile::Builder::new().prefix("hvsock-keeper-").tempdir();
    let folder = folder.context("cannot create a folder for the socket of the service")?;
    // A successor of the service is a child of a process that ends.
    init::adopt_orphans().context("cannot adopt the successors of the service")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(run(command, watchdog, folder.path()))
}

async fn run(command: Vec<OsString>, watchdog: Option<Duration>, folder: &Path) -> Result<u8> {
    let socket = NotifySocket::bind(&folder.join("notify"));
    let socket = socket.context("cannot create a socket for the service")?;
    let catch = |kind| signal(kind).context("cannot catch signals");
    let mut child = catch(SignalKind::child())?;
    let mut interrupt = catch(SignalKind::interrupt())?;
    let mut terminate = catch(SignalKind::terminate())?;
    let mut hangup = catch(SignalKind::hangup())?;
    let mut restart = catch(SignalKind::user_defined1())?;
    let mut keeper = Keeper {
        service: Service::new(watchdog, Instant::now()),
        socket: watch(socket).context("cannot wait for what the service says")?,
        command,
        watchdog,
    };
    loop {
        let due = keeper.service.expire(Instant::now());
        if let Some(status) = keeper.act(due) {
            return Ok(status);
        }
        let deadline = keeper.service.deadline();
        let idle = Instant::now() + Duration::from_secs(24 * 3600);
        let until = tokio::time::Instant::from_std(deadline.unwrap_or(idle));
        let actions = tokio::select! {
            () = tokio::time::sleep_until(until) => Vec::new(),
            readable = keeper.socket.readable() => {
                readable.context("cannot wait for what the service says")?.clear_ready();
                Vec::new()
            }
            _ = child.recv() => Vec::new(),
            // Its connections end with a reason then. SIGTERM would have it store them.
            _ = interrupt.recv() => keeper.service.stop(Signal::INT.as_raw(), Instant::now()),
            _ = terminate.recv() => keeper.service.stop(Signal::INT.as_raw(), Instant::now()),
            _ = hangup.recv() => keeper.service.signal(Signal::HUP.as_raw()).into_iter().collect(),
            _ = restart.recv() => keeper.service.signal(Signal::TERM.as_raw()).into_iter().collect(),
        };
        let ended = keeper.act(actions);
        // What a process has said was said before its end.
        if let Some(status) = ended.or_else(|| keeper.receive()).or_else(|| keeper.reap()) {
            return Ok(status);
        }
    }
}

#[allow(
    deprecated,
    reason = "an owned socket keeps its descriptor open; the replacement is unsafe"
)]
fn watch(socket: NotifySocket) -> io::Result<AsyncFd<NotifySocket>> {
    AsyncFd::with_interest(socket, Interest::READABLE)
}

impl Keeper {
    /// Acts. Returns the status with which the keeper ends.
    fn act(&mut self, actions: Vec<Action>) -> Option<u8> {
        for action in actions {
            match action {
                Action::Start => {
                    let now = Instant::now();
                    match self.start() {
                        Ok(pid) => self.service.started(pid, now),
                        Err(error) => {
                            let actions = self.service.not_started(&error.to_string(), now);
                            if let Some(status) = self.act(actions) {
                                return Some(status);
                            }
                        }
                    }
                }
                Action::Signal(pid, signal) => init::send_signal(pid, signal),
                Action::Warn(what) => tracing::warn!("{what}"),
                Action::End(status) => return Some(status),
            }
        }
        None
    }

    /// Handles what processes have said.
    fn receive(&mut self) -> Option<u8> {
        loop {
            let actions = match self.socket.get_ref().recv() {
                Ok(None) => return None,
                Ok(Some(said)) => {
                    let (state, descriptors) = (said.state, said.descriptors);
                    self.service.notified(&state, descriptors, Instant::now())
                }
                Err(error) => {
                    tracing::warn!(%error, "what the service says is lost");
                    if error.kind() != io::ErrorKind::InvalidData {
                        return None;
                    }
                    continue;
                }
            };
            if let Some(status) = self.act(actions) {
                return Some(status);
            }
        }
    }

    /// Takes the ends of processes.
    fn reap(&mut self) -> Option<u8> {
        loop {
            let (pid, change) = match init::next_change() {
                Ok(Some(change)) => change,
                Ok(None) => return None,
                Err(error) => {
                    tracing::warn!(%error, "cannot wait for the service");
                    return None;
                }
            };
            let actions = self.service.changed(pid, change, Instant::now());
            if let Some(status) = self.act(actions) {
                return Some(status);
            }
        }
    }

    fn start(&self) -> io::Result<u32> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("hvsock").arg(START_COMMAND);
        command.args(&self.command);
        command.env(service_manager::SOCKET, self.socket.get_ref().path());
        command.env(service_manager::STORE, MAX_STORED.to_string());
        for variable in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            command.env_remove(variable);
        }
        match self.watchdog {
            Some(watchdog) => command.env(WATCHDOG, watchdog.as_micros().to_string()),
            None => command.env_remove(WATCHDOG),
        };
        let stored: Vec<_> = self.service.stored().collect();
        let stored: Vec<_> = stored
            .iter()
            .map(|(name, one)| (*name, one.as_fd()))
            .collect();
        if !stored.is_empty() {
            activation::pass(&mut command, &stored)?;
        }
        Ok(command.spawn()?.id())
    }
}

/// The process of the internal command: becomes the program.
pub fn start() -> Result<()> {
    let mut words = std::env::args_os().skip(2);
    let Some(program) = words.next() else {
        return Err(Failure::usage("this command is internal").into());
    };
    let mut command = Command::new(&program);
    command.args(words);
    if std::env::var_os("LISTEN_FDS").is_some() {
        let (name, value) = activation::announce_to_self();
        command.env(name, value);
    }
    if std::env::var_os(WATCHDOG).is_some() {
        command.env(WATCHDOG_PID, std::process::id().to_string());
    }
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", Path::new(&program).display()))
}
