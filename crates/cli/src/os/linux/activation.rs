//! `hvsock listen --systemd`: gives connections to a service that takes its socket from systemd.
//!
//! Such a service expects a listening or a connected socket as descriptor 3 and its own process id in
//! `LISTEN_PID`. So this program starts itself again by the internal command [`COMMAND`], with the socket as its
//! standard input. That process moves the socket, sets the variables and becomes the service.
//!
//! A service that accepts itself gets a listening Unix socket, since no descriptor of a connection to the broker
//! is a socket that listens. It is created in a folder that is removed at once: what this process connects to is
//! the descriptor, so nobody else can connect, and nothing is left behind.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use hvsock::{HvAddr, HvListener, ListenOptions};
use hvsock_address::ServiceRef;
use hvsock_services::forward::Address;
use hvsock_services::host::forward::{Event, Forwarding};
use hvsock_sys::child::ChildHandle;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::context::Context;
use crate::failure::Failure;

/// The internal command by which this program becomes the service: `hvsock listen-activated`.
pub const COMMAND: &str = "listen-activated";

/// How long the service may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(10);
/// A service that ends sooner is started again with a growing delay.
const SHORT_RUN: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(250);
const MAX_DELAY: Duration = Duration::from_secs(4);
/// The backlog of the service's socket: that of systemd is larger, but no more connections than `--at-once` come.
const BACKLOG: u32 = 4096;

/// The option of `listen` for a command that takes its socket from systemd.
#[derive(Debug, Args)]
pub struct Activation {
    /// Pass a socket to the command as systemd does (LISTEN_FDS): a listening one to one process, or
    /// each connection to a process of its own
    #[arg(long, value_name = "KIND", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "listening", requires = "command")]
    systemd: Option<Kind>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A listening socket, as systemd's `Accept=no`
    Listening,
    /// A connection, as systemd's `Accept=yes`
    Accept,
}

/// What a service that accepts its connections itself is served with.
pub struct Served<'a> {
    pub listener: HvListener,
    pub options: ListenOptions,
    pub address: HvAddr,
    pub service: &'a ServiceRef,
    pub command: &'a [OsString],
    /// Start it again after its end, and listen again after the broker's.
    pub keep: bool,
    /// How many connections are relayed at once.
    pub at_once: usize,
}

impl Activation {
    /// Whether the command accepts its connections itself, so that [`serve`](Self::serve) runs it.
    pub fn accepts_itself(&self) -> bool {
        self.systemd == Some(Kind::Listening)
    }

    /// The command for one connection, which will be its standard input and output.
    pub fn command(&self, service: &ServiceRef, program: &OsStr) -> Result<Command> {
        Ok(match self.systemd {
            None | Some(Kind::Listening) => Command::new(program),
            Some(Kind::Accept) => {
                let mut command = this_program()?;
                command.arg("accept").arg(service.to_string()).arg(program);
                command
            }
        })
    }

    /// Relays connections to a service, which is started when the first one comes.
    pub fn serve(&self, context: &Context, served: Served<'_>) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        runtime.block_on(serve(context, served))
    }
}

fn this_program() -> Result<Command> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("hvsock").arg(COMMAND);
    Ok(command)
}

/// The process of the internal command: passes its standard input on as systemd does.
pub fn run_activated() -> Result<()> {
    let mut words = std::env::args_os().skip(2);
    let (kind, name, program) = (words.next(), words.next(), words.next());
    let (Some(kind), Some(name), Some(program)) = (kind, name, program) else {
        return Err(Failure::usage("this command is internal").into());
    };
    let variables = hvsock_sys::activation::pass_standard_input(&name.to_string_lossy());
    let variables = variables.context("cannot pass the socket to the command")?;
    match kind.as_encoded_bytes() {
        // Standard output is the connection. systemd's is the journal, where its errors go, too.
        b"accept" => rustix::stdio::dup2_stdout(io::stderr()).context("cannot set the output")?,
        parent => {
            // The service does not outlive the command that relays its connections.
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
                .context("cannot follow the end of the parent")?;
            let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().to_string());
            if now.is_none_or(|now| now.as_bytes() != parent) {
                return Err(Failure::new("the parent has ended").into());
            }
        }
    }
    let error = Command::new(&program).args(words).envs(variables).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// A listening socket that is reached by a descriptor only.
struct ServiceSocket {
    listener: OwnedFd,
    /// What is connected to.
    file: OwnedFd,
}

impl ServiceSocket {
    fn new() -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("hvsock-").tempdir()?;
        let path = folder.path().join("socket");
        let listener = hvsock_sys::stream::listen_at_new(&path, 0o600, BACKLOG)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::empty())?;
        Ok(Self { listener, file })
    }

    /// The address to connect to, in this process.
    fn address(&self) -> Result<Address> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        Address::unix(Path::new(&path)).context("cannot name the command's socket")
    }

    /// Closes the connections that wait to be accepted.
    fn refuse_pending(&self) {
        if rustix::io::ioctl_fionbio(&self.listener, true).is_ok() {
            while let Ok(Some(_)) = hvsock_sys::stream::accept(&self.listener) {}
        }
    }

    /// A copy for the service, in blocking mode as systemd passes it.
    fn for_service(&self) -> io::Result<OwnedFd> {
        rustix::io::ioctl_fionbio(&self.listener, false)?;
        self.listener.try_clone()
    }
}

/// Whether a connection waits to be accepted.
fn is_pending(listener: impl AsFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(&listener, PollFlags::IN)];
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

#[allow(
    deprecated,
    reason = "an owned file keeps its descriptor open; the replacement is unsafe"
)]
fn watch(listener: File) -> io::Result<AsyncFd<File>> {
    AsyncFd::with_interest(listener, Interest::READABLE)
}

/// Waits until a connection waits to be accepted.
async fn pending(listener: &AsyncFd<File>) -> io::Result<()> {
    loop {
        let mut ready = listener.readable().await?;
        if is_pending(listener.get_ref()) {
            return Ok(());
        }
        ready.clear_ready();
    }
}

async fn serve(context: &Context, served: Served<'_>) -> Result<()> {
    let Served {
        listener,
        options,
        address,
        service,
        command,
        keep,
        at_once,
    } = served;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch signals")?;
    let mut signalled = std::pin::pin!(async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    });
    let socket = ServiceSocket::new().context("cannot create the command's socket")?;
    let waiting = File::from(socket.listener.try_clone()?);
    let waiting = watch(waiting).context("cannot watch the command's socket")?;
    let listener = hvsock::tokio::HvListener::from_std(listener)?;
    let forwarding = Forwarding::of_listener(listener, options, address, socket.address()?);
    let (lost, mut is_lost) = mpsc::channel(1);
    let notes = context.clone();
    let name = service.to_string();
    let report = move |event: Event<'_>| match event {
        Event::Lost { why } => {
            notes.note(&format!(
                "the listener was closed: {why}; listening again when that is possible"
            ));
            let _ = lost.try_send(why);
        }
        Event::Regained => notes.note(&format!("listening for `{name}` again")),
        Event::LimitReached { limit } => notes.note(&format!(
            "the limit of {limit} connections at once is reached; further ones wait until one ends"
        )),
        Event::Failed { from, why } => notes.note(&format!("a connection from {from}: {why}")),
        Event::Opened { .. } | Event::Closed { .. } => {}
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async {
        let _ = stopped.await;
    };
    let relaying = tokio::spawn(forwarding.limit(at_once).run_until(stopped, report));
    let ended = async {
        match keep {
            true => std::future::pending().await,
            false => is_lost.recv().await,
        }
    };
    let mut ended = std::pin::pin!(ended);
    let (mut delay, mut noted) = (Duration::ZERO, String::new());
    let result = loop {
        tokio::select! {
            ready = pending(&waiting) => ready.context("cannot wait for a connection")?,
            _ = &mut signalled => break Ok(()),
            why = &mut ended => break Err(closed(why)),
        }
        let since = Instant::now();
        let mut process = Process::start(&socket, service, command)?;
        let status = tokio::select! {
            status = process.wait() => status?,
            _ = &mut signalled => {
                process.end().await;
                break Ok(());
            }
            why = &mut ended => {
                process.end().await;
                break Err(closed(why));
            }
        };
        let outcome = process.outcome(status);
        if !keep {
            // What it wrote last may still be on its way.
            drop((stop, waiting, socket));
            tokio::select! {
                _ = relaying => {}
                _ = &mut signalled => {}
            }
            return outcome;
        }
        delay = match since.elapsed() < SHORT_RUN {
            true => (delay * 2).clamp(FIRST_DELAY, MAX_DELAY),
            false => Duration::ZERO,
        };
        if let Err(error) = outcome {
            // Those that it has not accepted would wait for a service that may never work.
            socket.refuse_pending();
            let text = format!("{error}; it is started again for the next connection");
            if text != noted {
                context.note(&text);
                noted = text;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = &mut signalled => break Ok(()),
        }
    };
    relaying.abort();
    result
}

fn closed(why: Option<String>) -> anyhow::Error {
    let why = why.unwrap_or_default();
    Failure::new(format!("the listener was closed: {why}")).into()
}

/// The service.
struct Process<'a> {
    child: tokio::process::Child,
    /// To end it; `None` on a kernel without process descriptors.
    handle: Option<ChildHandle>,
    program: &'a OsStr,
}

impl<'a> Process<'a> {
    fn start(
        socket: &ServiceSocket,
        service: &ServiceRef,
        command: &'a [OsString],
    ) -> Result<Self> {
        let (program, arguments) = command.split_first().context("no command")?;
        let mut start = this_program()?;
        start
            .arg(std::process::id().to_string())
            .arg(service.to_string())
            .arg(program)
            .args(arguments)
            .env("HVSOCK_SERVICE", service.to_string())
            .stdin(Stdio::from(socket.for_service()?));
        let child = tokio::process::Command::from(start).spawn();
        let child = child.with_context(|| format!("cannot run {}", program.display()))?;
        let handle = child.id().and_then(|id| ChildHandle::of_id(id).ok());
        Ok(Self {
            child,
            handle,
            program,
        })
    }

    async fn wait(&mut self) -> Result<ExitStatus> {
        let status = self.child.wait().await;
        status.with_context(|| format!("cannot wait for {}", self.program.display()))
    }

    fn outcome(&self, status: ExitStatus) -> Result<()> {
        if status.success() {
            return Ok(());
        }
        let program = self.program.display();
        Err(Failure::new(format!("{program} failed with {status}")).into())
    }

    /// Asks it to end, and kills it after [`GRACE`].
    async fn end(mut self) {
        if let Some(handle) = self.handle.take() {
            let end = move || handle.end(Instant::now() + GRACE);
            let _ = tokio::task::spawn_blocking(end).await;
        }
        let _ = self.child.start_kill();
        let _ = self.child.wait().await;
    }
}
