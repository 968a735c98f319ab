//! Shutdown on the parent's request.
//!
//! The machine's init stops its services. If there is no such init, as in a machine whose first
//! process is a script, the agent does the work itself: it sends SIGTERM to all processes, then
//! SIGKILL, flushes the disks and calls reboot(2).

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::Endpoint;
use rustix::process::{Pid, Signal, kill_process};
use rustix::system::{RebootCommand, reboot};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::catalog::SHUTDOWN;
use crate::guest::audit::{self, Record};
use crate::link::ServiceServer;
use crate::wire::shutdown::shutdown_server::{Shutdown, ShutdownServer};
use crate::wire::shutdown::{Action, ShutdownReply, ShutdownRequest};

/// The largest request, and the longest reason in it, in bytes.
const LARGEST: usize = 4096;
const REASON: usize = 1024;

/// The delay before the shutdown, so that the reply reaches the host.
const REPLY_DELAY: Duration = Duration::from_millis(300);

/// How long programs have to exit after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);

/// The service.
pub(super) fn server(endpoint: Endpoint) -> ServiceServer {
    let server = ShutdownServer::new(Service { endpoint });
    let server = server.max_decoding_message_size(LARGEST);
    ServiceServer::calls(&SHUTDOWN, Routes::new(server))
}

struct Service {
    /// The kernel's vsock leads to the host of a virtual machine, a broker's endpoint to that of a
    /// container. Which one it is may be known only once the kernel has loaded the vsock device.
    endpoint: Endpoint,
}

#[tonic::async_trait]
impl Shutdown for Service {
    async fn begin(
        &self,
        request: Request<ShutdownRequest>,
    ) -> Result<Response<ShutdownReply>, Status> {
        let request = request.into_inner();
        let kind = match request.action() {
            Action::PowerOff => Kind::PowerOff,
            Action::Reboot => Kind::Reboot,
            Action::Unspecified => return Err(Status::invalid_argument("no action given")),
        };
        if request.reason.len() > REASON {
            return Err(Status::invalid_argument("the reason is too long"));
        }
        if !self.endpoint.uses_vsock() {
            let what =
                "a container ends with its first process; stop it with the program that started it";
            return Err(Status::failed_precondition(what));
        }
        if !rustix::process::geteuid().is_root() {
            return Err(Status::permission_denied("the agent does not run as root"));
        }
        let method = match request.force {
            true => Method::Immediate,
            false => Init::of_this_machine().method(kind),
        };
        let by = method.text(kind);
        tracing::warn!("shutdown requested by the host ({by}): {}", request.reason);
        audit::write(&Record {
            action: "shutdown",
            outcome: "started",
            detail: &format!("{by}: {}", request.reason),
            ..Record::default()
        });
        // A separate thread, because the runtime may be blocked and the shutdown must not depend on it.
        let begun = thread::Builder::new().spawn(move || {
            thread::sleep(REPLY_DELAY);
            shut_down(method, kind);
        });
        begun.map_err(|error| Status::internal(format!("cannot start a thread: {error}")))?;
        Ok(Response::new(ShutdownReply { by }))
    }
}

/// The kind of shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    PowerOff,
    Reboot,
}

/// The init of the machine, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Init {
    Systemd,
    /// An init that `poweroff` and `reboot` can talk to: busybox, sysvinit, OpenRC, runit.
    Classic,
    /// Anything else.
    Other,
}

/// How a machine is shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// By a command; init does the rest.
    Command(&'static [&'static str]),
    /// This process stops all programs.
    Orderly,
    /// Without stopping programs.
    Immediate,
}

impl Init {
    fn of_this_machine() -> Self {
        // sd_booted(3) checks for this folder.
        if Path::new("/run/systemd/system").is_dir() {
            return Self::Systemd;
        }
        Self::of_command_line(&fs::read("/proc/1/cmdline").unwrap_or_default())
    }

    /// Decides by the name of the first process; for a script that is its shell.
    fn of_command_line(cmdline: &[u8]) -> Self {
        let program = cmdline.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = program.rsplit(|byte| *byte == b'/').next();
        match name.unwrap_or_default() {
            b"init" | b"linuxrc" | b"openrc-init" | b"runit-init" | b"runit" => Self::Classic,
            _ => Self::Other,
        }
    }

    fn method(self, kind: Kind) -> Method {
        match (self, kind) {
            (Self::Systemd, Kind::PowerOff) => Method::Command(&["systemctl", "poweroff"]),
            (Self::Systemd, Kind::Reboot) => Method::Command(&["systemctl", "reboot"]),
            (Self::Classic, Kind::PowerOff) => Method::Command(&["poweroff"]),
            (Self::Classic, Kind::Reboot) => Method::Command(&["reboot"]),
            (Self::Other, _) => Method::Orderly,
        }
    }
}

impl Method {
    fn text(self, kind: Kind) -> String {
        let call = match kind {
            Kind::PowerOff => "reboot(RB_POWER_OFF)",
            Kind::Reboot => "reboot(RB_AUTOBOOT)",
        };
        match self {
            Self::Command(words) => words.join(" "),
            Self::Orderly => format!("SIGTERM to all, sync, {call}"),
            Self::Immediate => format!("sync, {call}"),
        }
    }
}

fn shut_down(method: Method, kind: Kind) {
    match method {
        Method::Command([program, arguments @ ..]) => {
            let mut command = Command::new(program);
            let ran = command.args(arguments).stdin(Stdio::null()).status();
            match ran {
                Ok(status) if status.success() => return,
                Ok(status) => tracing::error!("`{}` failed: {status}", method.text(kind)),
                Err(error) => tracing::error!("`{}` failed: {error}", method.text(kind)),
            }
            // The reply promised a shutdown.
            end_all();
        }
        Method::Command([]) | Method::Orderly => end_all(),
        Method::Immediate => {}
    }
    rustix::fs::sync();
    let command = match kind {
        Kind::PowerOff => RebootCommand::PowerOff,
        Kind::Reboot => RebootCommand::Restart,
    };
    if let Err(error) = reboot(command) {
        tracing::error!("reboot(2) failed: {error}");
    }
}

/// Ends every process except this one and the first.
fn end_all() {
    let deadline = Instant::now() + GRACE;
    signal_all(Signal::TERM);
    while count_others() > 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
    }
    signal_all(Signal::KILL);
}

fn signal_all(signal: Signal) {
    for pid in others() {
        let _ = kill_process(pid, signal);
    }
}

fn count_others() -> usize {
    others().count()
}

/// The processes that run programs. Kernel threads and zombies have no command line.
fn others() -> impl Iterator<Item = Pid> {
    let own = [1, std::process::id()];
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let number: u32 = entry.file_name().to_str()?.parse().ok()?;
        let cmdline = fs::read(entry.path().join("cmdline")).ok()?;
        let runs = !cmdline.is_empty() && !own.contains(&number);
        Pid::from_raw(i32::try_from(number).ok()?).filter(|_| runs)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_process_determines_the_shutdown_method() {
        for (cmdline, init) in [
            (&b"init\0"[..], Init::Classic),
            (b"/sbin/init\0splash\0", Init::Classic),
            (b"/sbin/openrc-init\0", Init::Classic),
            (b"/bin/sh\0/init\0", Init::Other),
            (b"/usr/lib/initial\0", Init::Other),
            (b"", Init::Other),
        ] {
            assert_eq!(Init::of_command_line(cmdline), init, "{cmdline:?}");
        }
        assert_eq!(
            Init::Classic.method(Kind::Reboot),
            Method::Command(&["reboot"])
        );
        assert_eq!(Init::Other.method(Kind::PowerOff), Method::Orderly);
        let text = Init::Systemd.method(Kind::PowerOff).text(Kind::PowerOff);
        assert_eq!(text, "systemctl poweroff");
    }

    #[tokio::test]
    async fn containers_and_invalid_requests_are_refused() {
        let own = Endpoint::of_vsock();
        let container = Endpoint::in_dir("/nowhere");
        let begin = async |endpoint: &Endpoint, action, reason: &str| {
            let request = ShutdownRequest {
                action: i32::from(action),
                force: true,
                reason: reason.to_owned(),
            };
            let endpoint = endpoint.clone();
            let refused = Service { endpoint }.begin(Request::new(request)).await;
            refused.unwrap_err().code()
        };
        let code = begin(&container, Action::PowerOff, "").await;
        assert_eq!(code, tonic::Code::FailedPrecondition);
        let code = begin(&own, Action::Unspecified, "").await;
        assert_eq!(code, tonic::Code::InvalidArgument);
        let code = begin(&own, Action::PowerOff, &"x".repeat(REASON + 1)).await;
        assert_eq!(code, tonic::Code::InvalidArgument);
    }
}
