//! `hvsock nri`: a plugin of containerd and CRI-O that gives containers their endpoints by annotation.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock_address::PartitionRef;
use hvsock_client::{Client, ClientError};
use hvsock_control::{NewContainer, Partition, PartitionKind};
use hvsock_nri::{Ended, Endpoint, Endpoints, Hook, Identity, Wanted, serve};
use hvsock_sys::activation;
use tokio::sync::oneshot;

use super::broker::log;
use super::hook_command::{self, CREATE_RUNTIME, POSTSTOP};
use super::oci_hook::{self, IfBrokerDown};
use crate::backoff::Backoff;
use crate::context::Context;
use crate::os::linux::signals::Termination;

/// Where runtimes listen for plugins.
const SOCKET: &str = "/var/run/nri/nri.sock";
/// The variable with the descriptor of the connection, if the runtime has started this process.
const PASSED: &str = "NRI_PLUGIN_SOCKET";
/// The variables with the name and index of a plugin that the runtime has started.
const PASSED_NAME: &str = "NRI_PLUGIN_NAME";
const PASSED_INDEX: &str = "NRI_PLUGIN_IDX";
/// How long a broker that does not run is waited for to tell it of containers that run.
const FOUND_LIMIT: Duration = Duration::from_secs(30);

/// Give containers of containerd and CRI-O their endpoints by annotation
#[derive(Clone, Debug, Args)]
pub struct Nri {
    /// The runtime's socket for plugins
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
    /// The place among other plugins, from 0 to 99
    #[arg(long, value_name = "NUMBER", default_value_t = 50, value_parser = clap::value_parser!(u8).range(..100))]
    index: u8,
    /// Take only Pods of this namespace; may be repeated
    #[arg(long = "namespace", value_name = "NAMESPACE")]
    namespaces: Vec<String>,
    /// Take only names that begin with this
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// Take also a container that was added with `hvsock container add`
    #[arg(long)]
    existing: bool,
    /// What happens to a container if no broker answers in time
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = IfBrokerDown::Fail)]
    if_broker_down: IfBrokerDown,
}

impl Nri {
    pub fn run(self, context: &Context) -> Result<()> {
        // Dropped last: it logs what the rate limit has left out until then.
        let _summaries = log(context.quiet);
        let mut termination = Termination::catch().context("cannot catch signals")?;
        let passed = activation::take_one(PASSED)?;
        let passed = passed.map(UnixStream::from);
        let identity = self.identity();
        let mut broker = Broker {
            command: self,
            context: context.clone(),
        };
        let (done, ended) = oneshot::channel();
        // It ends with the process.
        let plugin = thread::Builder::new().name("hvsock-nri".into());
        plugin.spawn(move || {
            let result = match passed {
                // The runtime starts another process when it is started again.
                Some(socket) => match broker.serve(&socket, &identity).0 {
                    Ended::Closed => Ok(()),
                    ended => Err(anyhow::Error::new(ended)),
                },
                None => broker.serve_each_connection(&identity),
            };
            let _ = done.send(result);
        })?;
        termination.wait_or(ended).unwrap_or(Ok(()))
    }

    fn identity(&self) -> Identity {
        let passed = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let index = passed(PASSED_INDEX).and_then(|index| index.parse().ok());
        Identity {
            name: passed(PASSED_NAME).unwrap_or_else(|| "hvsock".to_owned()),
            index: index.unwrap_or(self.index),
        }
    }

    /// Fails if containers of this kind get no endpoints.
    fn check(&self, wanted: &Wanted) -> Result<(), String> {
        let (namespace, name) = (&wanted.namespace, &wanted.name);
        if !self.namespaces.is_empty() && !self.namespaces.contains(namespace) {
            let namespace = hvsock_text::printable(namespace);
            return Err(format!(
                "Pods of the namespace {namespace} get no endpoints here"
            ));
        }
        match &self.prefix {
            Some(prefix) if !name.as_str().starts_with(prefix.as_str()) => Err(format!(
                "the annotation asks for {name}, and names must begin with {prefix}"
            )),
            _ => Ok(()),
        }
    }
}

/// The endpoints of the broker.
#[derive(Clone, Debug)]
struct Broker {
    command: Nri,
    context: Context,
}

impl Broker {
    /// Serves one connection. Returns also whether the runtime has taken the plugin.
    fn serve(&mut self, socket: &UnixStream, identity: &Identity) -> (Ended, bool) {
        let mut is_taken = false;
        let ended = serve(socket, identity, self, |runtime| {
            let runtime = hvsock_text::printable(runtime);
            tracing::info!("{runtime} has taken the plugin {}", identity.name);
            is_taken = true;
        });
        (ended, is_taken)
    }

    /// Connects to the runtime, and again when it was started again.
    fn serve_each_connection(&mut self, identity: &Identity) -> Result<()> {
        let (mut backoff, mut reported) = (Backoff::default(), String::new());
        loop {
            backoff.wait();
            let path = self.command.socket.clone();
            let reason = match UnixStream::connect(&path) {
                Ok(socket) => {
                    let (ended, is_taken) = self.serve(&socket, identity);
                    if is_taken {
                        (backoff, reported) = (Backoff::default(), String::new());
                    }
                    format!("{:#}", anyhow::Error::new(ended))
                }
                Err(error) => no_runtime(&path, &error),
            };
            if reason != reported {
                tracing::warn!("{reason}; trying again");
                reported = reason;
            }
        }
    }

    fn client(&self, deadline: Instant) -> Result<Client, String> {
        let client = self.context.broker.client();
        let client = client.map_err(|error| format!("{error:#}"))?;
        Ok(client.with_deadline(deadline))
    }

    /// Makes sure that there is the partition. Returns also whether it was added.
    fn partition(
        &self,
        wanted: &Wanted,
        client: &Client,
        deadline: Instant,
    ) -> Result<(Partition, bool), ClientError> {
        let name = PartitionRef::Name(wanted.name.clone());
        let existing = oci_hook::until_deadline(deadline, || client.partition(&name));
        match existing {
            Err(ClientError::Refused { status: 404, .. }) => {}
            existing => return existing.map(|partition| (partition, false)),
        }
        let added = client.add_container(&NewContainer {
            groups: wanted.groups.clone(),
            ephemeral: wanted.ephemeral,
            // The mount is the runtime's, without a device.
            cdi: false,
            ..NewContainer::new(wanted.name.clone())
        });
        added.map(|partition| (partition, true))
    }

    /// Fails if an annotation may not choose this partition.
    fn check_existing(&self, partition: &Partition) -> Result<(), String> {
        let name = &partition.name;
        if partition.kind != PartitionKind::Container {
            return Err(format!("{name} is not a container"));
        }
        let is_ephemeral = partition
            .container
            .as_ref()
            .is_some_and(|one| one.ephemeral);
        if !is_ephemeral && !self.command.existing {
            return Err(format!(
                "{name} was added by an operator, and an annotation may not choose it (`hvsock nri --existing` \
                 allows that)"
            ));
        }
        Ok(())
    }
}

impl Endpoints for Broker {
    fn prepare(&mut self, wanted: &Wanted, limit: Duration) -> Result<Option<Endpoint>, String> {
        self.command.check(wanted)?;
        let deadline = Instant::now() + limit;
        let client = self.client(deadline)?;
        let name = &wanted.name;
        let (partition, is_new) = match self.partition(wanted, &client, deadline) {
            Ok(found) => found,
            Err(error) if oci_hook::is_down(&error) => {
                let what = format!("no broker at {} answers: {error}", client.path().display());
                return match self.command.if_broker_down {
                    IfBrokerDown::Fail => Err(format!("{name} is not there: {what}")),
                    IfBrokerDown::Start => {
                        let id = hvsock_text::printable(&wanted.container_id);
                        tracing::warn!("{id} starts without being {name}: {what}");
                        Ok(None)
                    }
                };
            }
            Err(error) => return Err(format!("{name} is not there: {error}")),
        };
        if !is_new {
            self.check_existing(&partition)?;
        }
        let folder = partition.endpoint.as_deref().and_then(Path::parent);
        let folder = folder.and_then(Path::to_str);
        let folder = folder.ok_or_else(|| format!("the broker has no folder for {name}"))?;
        let run = client.path().parent().unwrap_or(Path::new("/"));
        let hooks = |hook| -> Result<Vec<Hook>, String> {
            let hook = hook_command::of_broker(run, hook);
            let (path, mut args) = hook.map_err(|error| format!("there is no hook: {error}"))?;
            args.push(name.to_string());
            let path = path.to_string_lossy().into_owned();
            Ok(vec![Hook { path, args }])
        };
        Ok(Some(Endpoint {
            folder: folder.to_owned(),
            create_runtime: hooks(CREATE_RUNTIME)?,
            poststop: hooks(POSTSTOP)?,
        }))
    }

    /// Adds the partitions again that the broker does not have any more, so that the mounts of containers that run
    /// lead somewhere.
    fn found(&mut self, wanted: Vec<Wanted>) {
        if wanted.is_empty() {
            return;
        }
        let broker = self.clone();
        let run = move || {
            let deadline = Instant::now() + FOUND_LIMIT;
            for wanted in wanted {
                let added = broker.command.check(&wanted).and_then(|()| {
                    let client = broker.client(deadline)?;
                    let partition = broker.partition(&wanted, &client, deadline);
                    partition.map_err(|error| error.to_string())
                });
                if let Err(error) = added {
                    let id = hvsock_text::printable(&wanted.container_id);
                    tracing::warn!("{id} runs and is not {}: {error}", wanted.name);
                }
            }
        };
        if let Err(error) = thread::Builder::new()
            .name("hvsock-found".into())
            .spawn(run)
        {
            tracing::warn!(%error, "cannot look at the containers that run");
        }
    }

    fn removed(&mut self, wanted: &Wanted, limit: Duration) {
        let (name, id) = (
            PartitionRef::Name(wanted.name.clone()),
            &wanted.container_id,
        );
        let released = self.client(Instant::now() + limit).and_then(|client| {
            let released = oci_hook::release_or_remove(&client, &name, id);
            released.map_err(|error| error.to_string())
        });
        if let Err(error) = released {
            let id = hvsock_text::printable(id);
            tracing::warn!("cannot release {} of {id}: {error}", wanted.name);
        }
    }
}

fn no_runtime(path: &Path, error: &io::Error) -> String {
    let path = hvsock_text::printable_path(path);
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!("no runtime listens at {path}: {error}")
        }
        _ => format!("cannot connect to {path}: {error}"),
    }
}
