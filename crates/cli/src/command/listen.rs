//! `hvsock listen`: offers a service from a shell.

use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock::{ConnectedChild, Endpoint, HvAddr, HvListener, HvStream, ListenOptions, Refusal};
use hvsock_address::{PartitionRef, ServiceRef, VmId};
use hvsock_sys::sync::{lock, unpoisoned};

use crate::context::Context;
use crate::failure::Failure;
use crate::os::{Activation, Partition, Served};
use crate::{backoff, bridge, explain};

/// The shortest time between two notes that the limit is reached.
const NOTE_INTERVAL: Duration = Duration::from_secs(60);

/// Offer a service to this terminal or to a command
#[derive(Debug, Args)]
pub struct Listen {
    /// The service's friendly name, GUID or vsock port
    service: ServiceRef,
    /// Accept from any, children, parent, loopback, or one partition by name or GUID
    #[arg(long, value_name = "PARTITION", default_value = "any")]
    from: Partition,
    /// Keep listening after the first connection, through restarts of the broker and while the service
    /// is disabled, and serve several connections at once
    #[arg(long, requires = "command")]
    keep: bool,
    /// The most connections that are served at once; more wait in the backlog
    #[arg(long, value_name = "N", default_value_t = 64, requires = "keep")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=4096))]
    at_once: u32,
    /// Suspend connections while their partition is paused
    #[arg(long)]
    connected_suspend: bool,
    #[command(flatten)]
    activation: Activation,
    /// Run this command with each connection as its stdin and stdout
    #[arg(last = true)]
    command: Vec<OsString>,
}

impl Listen {
    pub fn run(self, context: &Context) -> Result<()> {
        let from = self.from.resolve()?;
        let address = HvAddr::new(from.clone(), self.service.clone());
        let listener = self.listen(context, &context.endpoint(), &address)?;
        let from = match from {
            PartitionRef::Id(VmId::WILDCARD) => "any partition".to_owned(),
            _ => self.from.to_string(),
        };
        context.note(&format!("listening for `{}` from {from}", self.service));
        if self.activation.accepts_itself() {
            let served = Served {
                options: self.options(&listener.endpoint()),
                listener,
                address,
                service: &self.service,
                command: &self.command,
                keep: self.keep,
                at_once: self.at_once as usize,
            };
            return self.activation.serve(context, served);
        }
        if self.keep {
            return self.serve(context, listener, &address);
        }
        let stream = accept(&listener)?;
        if self.command.is_empty() {
            return bridge::run(&stream, context);
        }
        self.start(stream)?.end()
    }

    fn listen(
        &self,
        context: &Context,
        endpoint: &Endpoint,
        address: &HvAddr,
    ) -> Result<HvListener> {
        let listener = self.options(endpoint).listen(address.clone());
        listener.map_err(|error| explain::failure(context, error, address, true))
    }

    fn options(&self, endpoint: &Endpoint) -> ListenOptions {
        HvListener::options()
            .endpoint(endpoint)
            .connected_suspend(self.connected_suspend)
            .explain_refusal(true)
    }

    /// Runs a command for each connection. If the listener is closed, because the broker ends or the
    /// service is disabled, listens again as soon as that is possible.
    fn serve(&self, context: &Context, mut listener: HvListener, address: &HvAddr) -> Result<()> {
        let limit = Arc::new(CommandLimit::new(self.at_once));
        let mut noted: Option<Instant> = None;
        loop {
            if limit.is_reached() && noted.is_none_or(|noted| noted.elapsed() > NOTE_INTERVAL) {
                noted = Some(Instant::now());
                context.note(&format!(
                    "the limit of {} commands at once is reached; further connections wait until \
                     one ends",
                    self.at_once
                ));
            }
            let permit = CommandLimit::acquire(&limit);
            let running = match accept(&listener).and_then(|stream| self.start(stream)) {
                Ok(running) => running,
                Err(error) if error.is::<ListenerClosed>() => {
                    context.note(&format!("{error}; listening again when that is possible"));
                    // Not at another broker that runs meanwhile.
                    let endpoint = listener.endpoint();
                    let listen = || self.listen(context, &endpoint, address);
                    listener = backoff::until_done(listen, |reason| context.note(reason));
                    context.note(&format!("listening for `{}` again", self.service));
                    continue;
                }
                Err(error) => {
                    // Only this connection is lost. The delay bounds the rate of such failures.
                    context.note(&format!("cannot serve a connection: {error:#}"));
                    thread::sleep(Duration::from_millis(50));
                    continue;
                }
            };
            let notes = context.clone();
            let wait = move || {
                let connection = running.connection;
                if let Err(error) = running.end() {
                    notes.note(&format!("connection {connection}: {error}"));
                }
                drop(permit);
            };
            let started = thread::Builder::new().name("command".into()).spawn(wait);
            if let Err(error) = started {
                // The command runs on. What is short is free again when others have ended.
                context.note(&format!("cannot wait for a command: {error}"));
                thread::sleep(Duration::from_millis(50));
            }
        }
    }

    fn start(&self, stream: HvStream) -> Result<Running> {
        let (program, arguments) = self.command.split_first().context("no command")?;
        let connection = stream.connection_id();
        let peer = stream.peer().cloned();
        let vm_id = stream.peer_addr()?.vm;
        let mut command = self.activation.command(&self.service, program)?;
        command
            .args(arguments)
            .env("HVSOCK_SERVICE", self.service.to_string())
            .env("HVSOCK_CONNECTION", connection.to_string())
            .env("HVSOCK_PEER_VM_ID", vm_id.to_string());
        if let Some(peer) = peer {
            command.env("HVSOCK_PEER_PARTITION", peer.partition());
            let ids = [
                ("HVSOCK_PEER_PID", peer.pid()),
                ("HVSOCK_PEER_UID", peer.uid()),
            ];
            for (name, id) in ids {
                if let Some(id) = id {
                    command.env(name, id.to_string());
                }
            }
        }
        let child = stream.spawn(command);
        let child = child.with_context(|| format!("cannot run {}", program.display()))?;
        Ok(Running {
            child,
            program: program.clone(),
            connection,
        })
    }
}

/// A command with its connection.
struct Running {
    child: ConnectedChild,
    program: OsString,
    connection: u64,
}

impl Running {
    fn end(self) -> Result<()> {
        let status = self.child.wait();
        let status = status.map_err(|error| bridge::child_failed(&self.program, error))?;
        if status.success() {
            return Ok(());
        }
        let program = OsStr::display(&self.program);
        Err(Failure::new(format!("{program} failed with {status}")).into())
    }
}

/// The broker closed the listener.
#[derive(Debug, thiserror::Error)]
#[error("the listener was closed: {0}")]
struct ListenerClosed(Refusal);

fn accept(listener: &HvListener) -> Result<HvStream> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(match hvsock::refusal_of(&error) {
                    Some(refusal) => ListenerClosed(refusal.clone()).into(),
                    None => anyhow::Error::new(error).context("cannot accept a connection"),
                });
            }
        }
    }
}

/// Bounds the number of commands that run at once.
struct CommandLimit {
    free: Mutex<u32>,
    changed: Condvar,
}

/// A permit to run one command.
struct Permit(Arc<CommandLimit>);

impl CommandLimit {
    fn new(count: u32) -> Self {
        Self {
            free: Mutex::new(count),
            changed: Condvar::new(),
        }
    }

    /// Whether the next command has to wait.
    fn is_reached(&self) -> bool {
        *lock(&self.free) == 0
    }

    /// Waits until a command may start.
    fn acquire(limit: &Arc<Self>) -> Permit {
        let free = lock(&limit.free);
        let free = limit.changed.wait_while(free, |free| *free == 0);
        *unpoisoned(free) -= 1;
        Permit(limit.clone())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *lock(&self.0.free) += 1;
        self.0.changed.notify_one();
    }
}
