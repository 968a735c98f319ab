//! `hvsock seccomp-agent`: answers socket calls of containers' unmodified programs.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock::Endpoint;
use hvsock_address::SockAddrVm;
use hvsock_interpose::broker::own_cid;
use hvsock_interpose::model::OwnCid;
use hvsock_interpose::model::{place, restriction};
use hvsock_interpose::supervisor::{Event, Settings, Supervisor};
use hvsock_sys::seccomp::Listener;
use hvsock_text::{printable, printable_path};
use rustix::fs::{Mode, OFlags};

use super::broker::log;
use crate::context::Context;
use crate::failure::Failure;
use crate::os::linux::seccomp_agent::Agent;
use crate::os::linux::signals::Termination;
use crate::output;

/// Answer socket calls of unmodified programs in containers, for a broker that does not
#[derive(Debug, Args)]
pub struct SeccompAgent {
    /// Answer the calls of the listener on standard input, for the partition with this endpoint
    #[arg(long, value_name = "ENDPOINT", hide = true)]
    supervise: Option<PathBuf>,
}

impl SeccompAgent {
    pub fn run(self, context: &Context) -> Result<()> {
        // Dropped last: it logs what the rate limit has left out until then.
        let _summaries = log(context.quiet);
        if let Some(endpoint) = self.supervise {
            return supervise(&endpoint);
        }
        let mut termination = Termination::catch().context("cannot catch signals")?;
        let dirs = context.broker.dirs()?;
        let path = dirs.seccomp_agent();
        let agent = Agent::bind(&dirs).map_err(|error| {
            let path = printable_path(&path);
            Failure::new(format!(
                "cannot answer calls of containers at {path}: {error:#}"
            ))
            .help("a broker is the agent unless it has --no-seccomp-agent")
        })?;
        agent.start().context("cannot start a thread")?;
        output::line(format_args!(
            "hvsock seccomp-agent ready: {}",
            printable_path(&path)
        ))?;
        termination.wait();
        Ok(())
    }
}

/// Answers the calls of one listener until no process is left under its filter.
fn supervise(path: &Path) -> Result<()> {
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    // Runtimes do not say whether they set the flag, and most cannot.
    let listener = Listener::from_descriptor(listener, false)?;
    let (folder, endpoint) = reachable(path).context("cannot open the endpoint's folder")?;
    let own = own_cid(&endpoint).unwrap_or_else(|error| {
        // The container's other sockets need answers all the same.
        let path = printable_path(path);
        tracing::warn!("the context id of the partition of {path} is not known: {error}");
        OwnCid(SockAddrVm::CID_ANY)
    });
    let container = path.parent().and_then(Path::file_name);
    let container = container.map(|name| printable(&name.to_string_lossy()).to_string());
    let container = container.unwrap_or_default();
    let settings = Settings {
        endpoint,
        register: VecDeque::new(),
        on_event: Box::new(move |event| report(&container, &event)),
    };
    let supervisor = Supervisor::new(listener, settings, own, None)?;
    let done = supervisor.run();
    drop(folder);
    done.context("cannot answer the calls of a container")
}

/// The endpoint at a path that a container's users reach, too: the supervisor connects with the rights of the
/// calling program, and those users cannot search the folder above. Like the mount in the container it stays the
/// one of this folder. Returns also the folder, on which the path depends.
fn reachable(path: &Path) -> io::Result<(OwnedFd, Endpoint)> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    let folder = path.parent().ok_or_else(invalid)?;
    let name = path.file_name().ok_or_else(invalid)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, Mode::empty())?;
    let inside = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    Ok((folder, Endpoint::at(inside)))
}

/// Logs what an operator may want to know.
fn report(container: &str, event: &Event) {
    match event {
        Event::Restricted {
            address,
            accepts_from,
            refusal,
            ..
        } => {
            let restriction = restriction(address, *accepts_from, refusal);
            tracing::warn!("{container}: {restriction}");
        }
        Event::Registered { name, address } => {
            let place = place(address);
            tracing::info!("{container}: registered {place} as {name}");
        }
        Event::NotRegistered { name, reason } => {
            tracing::warn!("{container}: cannot register {name}: {reason}");
        }
        Event::ListenerEnded { address, refusal } => {
            let place = place(address);
            match refusal {
                Some(refusal) => {
                    tracing::warn!("{container}: the listener for {place} has ended: {refusal}");
                }
                None => tracing::info!("{container}: {place} waits for the broker"),
            }
        }
        Event::NoAccess { process } => tracing::warn!(
            "{container}: sockets of process {process} cannot be served: this process may not look at it"
        ),
    }
}
