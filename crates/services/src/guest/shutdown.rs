//! Going down when the parent asks for it.
//!
//! The init of the machine knows how to end what runs. Where it is none that could be asked, as in a
//! machine whose first process is a script, the agent does that itself: first everybody is asked to
//! end, then made to, then the disks are written and the kernel is told.

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
use crate::guest::Config;
use crate::link::Offer;
use crate::wire::shutdown::shutdown_server::{Shutdown, ShutdownServer};
use crate::wire::shutdown::{Action, ShutdownReply, ShutdownRequest};

/// Bytes of a request, and of the reason in it.
const LARGEST: usize = 4096;
const REASON: usize = 1024;

/// Time for the answer to get to the host.
const FAREWELL: Duration = Duration::from_millis(300);

/// How long programs have to end once they are asked.
const GRACE: Duration = Duration::from_secs(10);

/// The service.
pub(super) fn offer(config: &Config) -> Offer {
    let server = ShutdownServer::new(Service {
        endpoint: config.endpoint.clone(),
    });
    let server = server.max_decoding_message_size(LARGEST);
    Offer::calls(&SHUTDOWN, Routes::new(server))
}

struct Service {
    /// The kernel's sockets lead to the host of a machine, and a broker's to that of a container. Which
    /// it is may show only once the kernel has the device.
    endpoint: Endpoint,
}

#[tonic::async_trait]
impl Shutdown for Service {
    async fn begin(
        &self,
        request: Request<ShutdownRequest>,
    ) -> Result<Response<ShutdownReply>, Status> {
        let request = request.into_inner();
        let end = match request.action() {
            Action::PowerOff => End::PowerOff,
            Action::Reboot => End::Reboot,
            Action::Unspecified => return Err(Status::invalid_argument("to do what?")),
        };
        if request.reason.len() > REASON {
            return Err(Status::invalid_argument("the reason is too long"));
        }
        if !self.endpoint.uses_vsock() {
            let what = "a container ends with its first process; stop it with what started it";
            return Err(Status::failed_precondition(what));
        }
        if !rustix::process::geteuid().is_root() {
            return Err(Status::permission_denied("the agent does not run as root"));
        }
        let way = match request.force {
            true => Way::AtOnce,
            false => Init::of_this_machine().way(end),
        };
        let by = way.words(end);
        tracing::warn!(
            "the host asks for the end of this machine ({by}): {}",
            request.reason
        );
        // A thread of its own: the runtime may be busy, and this must come to pass.
        let begun = thread::Builder::new().spawn(move || {
            thread::sleep(FAREWELL);
            go(way, end);
        });
        begun.map_err(|error| Status::internal(format!("cannot begin: {error}")))?;
        Ok(Response::new(ShutdownReply { by }))
    }
}

/// What is to become of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    PowerOff,
    Reboot,
}

/// What the first process is, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Init {
    Systemd,
    /// One that `poweroff` and `reboot` know how to tell: of busybox, sysvinit, OpenRC, runit.
    Classic,
    /// Anything else.
    Other,
}

/// How a machine goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// By this command, after which init does the rest.
    Command(&'static [&'static str]),
    /// Programs are ended by this process.
    Orderly,
    /// They are not.
    AtOnce,
}

impl Init {
    fn of_this_machine() -> Self {
        // The folder is how sd_booted(3) tells.
        if Path::new("/run/systemd/system").is_dir() {
            return Self::Systemd;
        }
        Self::of_command_line(&fs::read("/proc/1/cmdline").unwrap_or_default())
    }

    /// By the name that it was started by: a script's is that of its shell.
    fn of_command_line(cmdline: &[u8]) -> Self {
        let program = cmdline.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = program.rsplit(|byte| *byte == b'/').next();
        match name.unwrap_or_default() {
            b"init" | b"linuxrc" | b"openrc-init" | b"runit-init" | b"runit" => Self::Classic,
            _ => Self::Other,
        }
    }

    fn way(self, end: End) -> Way {
        match (self, end) {
            (Self::Systemd, End::PowerOff) => Way::Command(&["systemctl", "poweroff"]),
            (Self::Systemd, End::Reboot) => Way::Command(&["systemctl", "reboot"]),
            (Self::Classic, End::PowerOff) => Way::Command(&["poweroff"]),
            (Self::Classic, End::Reboot) => Way::Command(&["reboot"]),
            (Self::Other, _) => Way::Orderly,
        }
    }
}

impl Way {
    fn words(self, end: End) -> String {
        let call = match end {
            End::PowerOff => "reboot(RB_POWER_OFF)",
            End::Reboot => "reboot(RB_AUTOBOOT)",
        };
        match self {
            Self::Command(words) => words.join(" "),
            Self::Orderly => format!("SIGTERM to all, sync, {call}"),
            Self::AtOnce => format!("sync, {call}"),
        }
    }
}

fn go(way: Way, end: End) {
    match way {
        Way::Command([program, arguments @ ..]) => {
            let mut command = Command::new(program);
            let ran = command.args(arguments).stdin(Stdio::null()).status();
            match ran {
                Ok(status) if status.success() => return,
                Ok(status) => tracing::error!("`{}` failed: {status}", way.words(end)),
                Err(error) => tracing::error!("`{}` failed: {error}", way.words(end)),
            }
            // It was promised.
            end_all();
        }
        Way::Command([]) | Way::Orderly => end_all(),
        Way::AtOnce => {}
    }
    rustix::fs::sync();
    let command = match end {
        End::PowerOff => RebootCommand::PowerOff,
        End::Reboot => RebootCommand::Restart,
    };
    if let Err(error) = reboot(command) {
        tracing::error!("the kernel does not let the machine end: {error}");
    }
}

/// Ends every process but this one and the first.
fn end_all() {
    let deadline = Instant::now() + GRACE;
    signal_all(Signal::TERM);
    while signal_count() > 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
    }
    signal_all(Signal::KILL);
}

fn signal_all(signal: Signal) {
    for pid in others() {
        let _ = kill_process(pid, signal);
    }
}

fn signal_count() -> usize {
    others().count()
}

/// The processes that run programs: neither the kernel's own nor those that have ended, which have
/// no command line.
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
    fn the_first_process_says_how_a_machine_goes_down() {
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
        assert_eq!(Init::Classic.way(End::Reboot), Way::Command(&["reboot"]));
        assert_eq!(Init::Other.way(End::PowerOff), Way::Orderly);
        let words = Init::Systemd.way(End::PowerOff).words(End::PowerOff);
        assert_eq!(words, "systemctl poweroff");
    }

    #[tokio::test]
    async fn a_container_is_not_shut_down_and_what_makes_no_sense_neither() {
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
