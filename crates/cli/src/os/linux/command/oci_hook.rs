//! `hvsock oci-hook`: the hooks by which a container runtime says which container a partition is.
//!
//! A runtime calls them with the container's state on standard input, and waits. So each has a time limit for
//! all that it does, and a broker that is restarting is waited for as long as that allows.

mod state;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::context::Context;
use crate::failure::Failure;
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand, ValueEnum};
use hvsock_address::{PartitionName, PartitionRef};
use hvsock_client::{Client, ClientError};
use hvsock_control::{NewBinding, NewContainer, Partition};
use hvsock_sys::container_mount;
use hvsock_sys::pidfd::Process;
use hvsock_text::printable_path;
use rustix::event::{PollFd, PollFlags, Timespec};
use state::State;

/// The time limit of a hook. A runtime waits for it.
const LIMIT: Duration = Duration::from_secs(2);
/// The delay before a broker that does not run is tried again.
const RETRY: Duration = Duration::from_millis(50);
/// The most bytes of a container's state.
const MAX_STATE: usize = 1 << 20;
/// The folder of the endpoint in a container.
const INSIDE: &str = "/run/hvsock";
/// The annotation with the name of a container's partition.
pub const NAME_ANNOTATION: &str = "hvsock.dev/name";
/// The annotation with the sibling groups of a partition that is added for a container.
const GROUPS_ANNOTATION: &str = "hvsock.dev/groups";

/// Say which container a partition is; container runtimes run it
#[derive(Debug, Subcommand)]
pub enum OciHook {
    CreateRuntime(CreateRuntime),
    Poststop(Poststop),
}

/// Bind a container that is being started to its partition
#[derive(Debug, Args)]
pub struct CreateRuntime {
    #[command(flatten)]
    which: Which,
    /// With --annotation: take also a container that was added with `hvsock container add`
    #[arg(long, requires = "annotation")]
    existing: bool,
    /// With --annotation: take only names that begin with this
    #[arg(long, requires = "annotation", value_name = "TEXT")]
    prefix: Option<String>,
    /// With --annotation: mount the endpoint's folder in the container, as /run/hvsock
    #[arg(long, requires = "annotation")]
    mount: bool,
    /// What happens to the container if no broker answers within 2 seconds
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = IfBrokerDown::Fail)]
    if_broker_down: IfBrokerDown,
}

/// Release the partition of a container that its runtime has removed
#[derive(Debug, Args)]
pub struct Poststop {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Args)]
#[group(required = true)]
struct Which {
    /// The container, as `hvsock container list` names it
    #[arg(long)]
    name: Option<PartitionName>,
    /// Use the name in the annotation hvsock.dev/name, and do nothing without it
    #[arg(long, conflicts_with = "name")]
    annotation: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IfBrokerDown {
    /// It is not started
    Fail,
    /// It is started, and its state is unknown
    Start,
}

impl OciHook {
    pub fn run(self, context: &Context) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        let state = read_state(deadline)?;
        match self {
            Self::CreateRuntime(hook) => hook.run(context, &state, deadline),
            Self::Poststop(hook) => hook.run(context, &state, deadline),
        }
    }
}

impl CreateRuntime {
    fn run(&self, context: &Context, state: &State, deadline: Instant) -> Result<()> {
        let Some(name) = self.which.name(state)? else {
            return Ok(());
        };
        if let Some(prefix) = &self.prefix
            && !name.as_str().starts_with(prefix.as_str())
        {
            let message = format!(
                "the annotation {NAME_ANNOTATION} of {} is {name}, and names must begin with {prefix}",
                state.id
            );
            return Err(Failure::new(message).into());
        }
        let process = self.process(state)?;
        let broker = Broker::new(context, deadline)?;
        let bound = self.add_and_bind(&broker, &name, state, &process);
        match bound {
            Err(error) if is_down(&error) => {
                let path = broker.client.path().display().to_string();
                let (id, limit) = (&state.id, LIMIT.as_secs());
                let what = format!("no broker at {path} answered within {limit} seconds: {error}");
                match self.if_broker_down {
                    IfBrokerDown::Start => {
                        context.note(&format!("note: {what}; {id} starts without being {name}"));
                        Ok(())
                    }
                    IfBrokerDown::Fail => {
                        let message = format!("{id} is not started as {name}: {what}");
                        let help = "start the broker; with `--if-broker-down start` in the hook's \
                                    arguments, containers start without one";
                        Err(Failure::new(message).help(help).into())
                    }
                }
            }
            Err(error) => {
                let id = &state.id;
                Err(anyhow::Error::new(error).context(format!("{id} is not started as {name}")))
            }
            Ok(partition) if self.mount => {
                let mounted = mount(state, &process, &partition);
                mounted.inspect_err(|_| {
                    let _ = broker
                        .client
                        .release_container(&partition.id.into(), &state.id);
                })
            }
            Ok(_) => Ok(()),
        }
    }

    fn process(&self, state: &State) -> Result<Process> {
        let id = &state.id;
        let pid = state.pid.filter(|pid| *pid != 0);
        let pid = pid.with_context(|| format!("the state of {id} has no process"))?;
        Process::open(pid).with_context(|| format!("cannot open the process {pid} of {id}"))
    }

    fn add_and_bind(
        &self,
        broker: &Broker,
        name: &PartitionName,
        state: &State,
        process: &Process,
    ) -> Result<Partition, ClientError> {
        let partition = PartitionRef::Name(name.clone());
        let added = self.which.annotation && self.add(broker, name, state)?;
        let new = NewBinding {
            oci_id: state.id.clone(),
            pid: None,
            optional: self.if_broker_down == IfBrokerDown::Start,
        };
        let bound = broker.try_until_deadline(|client| {
            let descriptor = rustix::io::fcntl_dupfd_cloexec(process, 0);
            let descriptor: OwnedFd = descriptor.map_err(|error| ClientError::Io {
                path: client.path().to_owned(),
                error: error.into(),
            })?;
            client.bind_container(&partition, &new, Some(descriptor))
        });
        if bound.is_err() && added {
            let _ = release_or_remove(&broker.client, &partition, &state.id);
        }
        bound
    }

    /// Adds the partition of a container that is named by its annotation. Returns whether it was not there.
    fn add(
        &self,
        broker: &Broker,
        name: &PartitionName,
        state: &State,
    ) -> Result<bool, ClientError> {
        let groups = state.annotation(GROUPS_ANNOTATION).unwrap_or_default();
        let groups = groups.split(',').map(str::trim);
        let groups = groups.filter(|group| !group.is_empty()).map(str::to_owned);
        let new = NewContainer {
            groups: groups.collect(),
            ephemeral: true,
            ..NewContainer::new(name.clone())
        };
        let existing = || {
            broker
                .client
                .partition(&PartitionRef::Name(name.clone()))
                .is_ok_and(|partition| {
                    let container = partition.container.as_ref();
                    self.existing || container.is_some_and(|container| container.ephemeral)
                })
        };
        match broker.try_until_deadline(|client| client.add_container(&new)) {
            Ok(_) => Ok(true),
            Err(ClientError::Refused { status: 409, .. }) if existing() => Ok(false),
            Err(ClientError::Refused {
                status: 409, fix, ..
            }) => Err(ClientError::Refused {
                status: 409,
                message: format!(
                    "{name} was added by an operator, and an annotation may not choose it \
                     (`--existing` in the hook's arguments allows that)"
                ),
                fix,
            }),
            Err(error) => Err(error),
        }
    }
}

impl Poststop {
    fn run(&self, context: &Context, state: &State, deadline: Instant) -> Result<()> {
        let Some(name) = self.which.name(state)? else {
            return Ok(());
        };
        let broker = Broker::new(context, deadline)?;
        let partition = PartitionRef::Name(name.clone());
        let release = |client: &Client| client.release_container(&partition, &state.id);
        match broker.try_until_deadline(release) {
            // It is removed, or was never added.
            Ok(_) | Err(ClientError::Refused { status: 404, .. }) => Ok(()),
            Err(error) if is_down(&error) => {
                let what = "the broker finds that it has ended when it starts";
                context.note(&format!("note: cannot release {name}: {error}; {what}"));
                Ok(())
            }
            Err(error) => Err(anyhow::Error::new(error).context(format!("cannot release {name}"))),
        }
    }
}

/// Mounts the folder of a partition's endpoint in its container, which is being created.
fn mount(state: &State, process: &Process, partition: &Partition) -> Result<()> {
    let (id, name) = (&state.id, &partition.name);
    let endpoint = partition.endpoint.as_ref();
    let folder = endpoint.and_then(|endpoint| endpoint.parent());
    let folder = folder.with_context(|| format!("{name} has no endpoint"))?;
    let root = state.root(|path| fs::read(path)).with_context(|| {
        let path = state.configuration();
        format!("cannot read the configuration {}", printable_path(&path))
    })?;
    container_mount::mount(process, folder, &root, Path::new(INSIDE)).with_context(|| {
        let (folder, root) = (printable_path(folder), printable_path(&root));
        format!("cannot mount {folder} as {INSIDE} in {id}, whose root is {root}")
    })
}

impl Which {
    /// The partition of a container; `None` if it is to have none.
    fn name(&self, state: &State) -> Result<Option<PartitionName>> {
        if !self.annotation {
            return Ok(self.name.clone());
        }
        let Some(text) = state.annotation(NAME_ANNOTATION) else {
            return Ok(None);
        };
        let name = PartitionName::new(text);
        let name =
            name.with_context(|| format!("the annotation {NAME_ANNOTATION} of {}", state.id));
        name.map(Some)
    }
}

/// A broker, and until when it is tried.
struct Broker {
    client: Client,
    deadline: Instant,
}

impl Broker {
    fn new(context: &Context, deadline: Instant) -> Result<Self> {
        let client = context.client()?.with_deadline(deadline);
        Ok(Self { client, deadline })
    }

    /// Makes a call, again while no broker runs, as when it is being restarted.
    fn try_until_deadline<T>(
        &self,
        call: impl Fn(&Client) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        until_deadline(self.deadline, || call(&self.client))
    }
}

/// Makes a call, again while no broker runs, as when it is being restarted.
pub fn until_deadline<T>(
    deadline: Instant,
    call: impl Fn() -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    loop {
        let result = call();
        let left = deadline.saturating_duration_since(Instant::now());
        match &result {
            Err(error) if is_down(error) && left > RETRY => thread::sleep(RETRY),
            _ => return result,
        }
    }
}

/// Releases the partition that was added for a container, and removes it if no container has ever been bound
/// to it: no end of one would.
pub fn release_or_remove(
    client: &Client,
    partition: &PartitionRef,
    oci_id: &str,
) -> Result<(), ClientError> {
    let released = client.release_container(partition, oci_id);
    match released.and_then(|_| client.partition(partition)) {
        Ok(left) => {
            let container = left.container.unwrap_or_default();
            // It may be another one's by now, which then holds it.
            match container.ephemeral && container.oci_id.is_none() {
                true => client.remove_partition(partition).map(drop),
                false => Ok(()),
            }
        }
        // It is removed, or was never added.
        Err(ClientError::Refused { status: 404, .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether a call failed because no broker runs or it does not answer.
pub fn is_down(error: &ClientError) -> bool {
    match error {
        ClientError::NotRunning { .. } | ClientError::TimedOut(_) => true,
        // The connection ended without an answer.
        ClientError::Protocol(_) => true,
        ClientError::Refused { status, .. } => *status == 503,
        _ => false,
    }
}

fn read_state(deadline: Instant) -> Result<State> {
    let bytes = read_input(deadline).context("cannot read the container's state from stdin")?;
    State::parse(&bytes).context("the state on stdin is none of an OCI container")
}

/// Reads standard input to its end, or fails at `deadline`.
fn read_input(deadline: Instant) -> io::Result<Vec<u8>> {
    let stdin = io::stdin();
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&left)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match rustix::io::read(&stdin, &mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(len) => bytes.extend_from_slice(buffer.get(..len).unwrap_or_default()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if bytes.len() > MAX_STATE {
            let message = format!("it has more than {MAX_STATE} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
    }
}
