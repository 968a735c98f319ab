//! The part of a broker that takes over a running one.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use hvsock_endpoint::Dirs;
use hvsock_registry::store::{self, FolderStore, RegistrationStore as _};
use hvsock_sys::pidfd::Process;
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::{peer, seqpacket};

use crate::core::Loop;
use crate::handover::document::Document;
use crate::handover::join::{Joining, Outcome, Target};
use crate::handover::{Channel, HandoverError, Imports, Known};
use crate::parts::{Parts, Prepared};
use crate::upgrade::RELEASE;
use crate::{Broker, BrokerConfig, StartError, folders};

/// How long to wait for a place in the queue of the running broker.
const CONNECT: Duration = Duration::from_secs(5);

/// A broker that was to take over a running one.
pub enum TakenOver {
    /// It runs, with all that the other had.
    Broker {
        /// The broker.
        broker: Broker,
        /// The release of the one that it has taken over.
        from: String,
        /// The process of that one.
        predecessor: Predecessor,
    },
    /// It runs, and has taken over nothing: the other has ended meanwhile.
    Fresh(Broker),
    /// It could have taken over. The other goes on.
    DryRun,
}

/// The process of a broker that was taken over. It only has to end.
#[derive(Debug)]
pub struct Predecessor(Process);

impl Predecessor {
    /// Waits for its end, at most for `limit`. Returns whether it has ended.
    pub fn wait_for_end(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        poll::wait(&mut fds, Some(Instant::now() + limit)).unwrap_or(false)
    }
}

/// Why a broker was not taken over. The other one goes on, if there is one.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// No broker runs with these folders.
    #[error("no broker runs that could be taken over: {}: {error}", dirs.handover().display())]
    NotRunning {
        /// The folders.
        dirs: Box<Dirs>,
        /// The system's error.
        error: std::io::Error,
    },
    /// It cannot be taken over.
    #[error("cannot take over the running broker, which goes on: {0}")]
    Refused(String),
    /// The other one has ended meanwhile, and this one cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl Broker {
    /// Takes over the broker that runs with the folders of `config`: all that it has, while it has it. Returns
    /// once this broker runs, and the other's process ends.
    ///
    /// If that fails, the other one goes on, and the process of this one is ended (`SIGKILL`) if it might have
    /// received anything. So a program calls this before it does anything else.
    ///
    /// With `dry_run` everything is done but the last step, and the other goes on.
    ///
    /// # Errors
    ///
    /// [`TakeOverError`], if the other one goes on, or if there is none.
    pub fn take_over(config: BrokerConfig, dry_run: bool) -> Result<TakenOver, TakeOverError> {
        let dirs = config.dirs.clone();
        let not_running = |error| TakeOverError::NotRunning {
            dirs: Box::new(dirs.clone()),
            error,
        };
        let socket = seqpacket::connect(&dirs.handover(), CONNECT).map_err(not_running)?;
        let process = || peer::process(&socket).and_then(Process::from_descriptor);
        let predecessor = Predecessor(process().map_err(not_running)?);
        let process = process().map_err(not_running)?;
        let channel = Channel::new(socket, process);
        let mut target = Successor::new(config.clone());
        let outcome = Joining::new(channel, Known::OWN, RELEASE, dry_run).run(&mut target);
        match (outcome, target.prepared.take(), target.restored.take()) {
            (Outcome::Run { from }, Some(prepared), Some(restored)) => Ok(TakenOver::Broker {
                broker: restored.run(prepared),
                from,
                predecessor,
            }),
            (Outcome::StartFresh, prepared, _) => {
                // Its connections are closed, as those of a broker that has ended are.
                drop(prepared);
                Ok(TakenOver::Fresh(Self::start(config)?))
            }
            (Outcome::Exit(reason), prepared, restored) => {
                // What they have is the other broker's.
                std::mem::forget((prepared, restored));
                Err(TakeOverError::Refused(reason))
            }
            (Outcome::DryRun, prepared, restored) => {
                std::mem::forget((prepared, restored));
                Ok(TakenOver::DryRun)
            }
            (Outcome::Run { .. }, ..) => {
                Err(TakeOverError::Refused("the state was not restored".into()))
            }
        }
    }
}

/// A broker that is taking over.
pub(crate) struct Successor {
    config: BrokerConfig,
    prepared: Option<Prepared>,
    restored: Option<Restored>,
}

/// What came from the other broker, beside the tables.
struct Restored {
    lock: OwnedFd,
    control: Option<crate::api::ControlServer>,
}

impl Successor {
    pub(crate) fn new(config: BrokerConfig) -> Self {
        Self {
            config,
            prepared: None,
            restored: None,
        }
    }

    /// Goes on with a state that no other process has.
    pub(crate) fn run(mut self, document: Document, imports: Imports) -> Result<Broker, String> {
        self.prepare()?;
        self.restore(document, imports)?;
        let parts = self.prepared.take().zip(self.restored.take());
        let (prepared, restored) = parts.ok_or("the state was not restored")?;
        let handle = prepared.handle.clone();
        let broker = restored.run(prepared);
        // The folders may have been removed while no broker ran.
        handle.check_mounts(true);
        handle.check_run_folder();
        Ok(broker)
    }
}

impl Target for Successor {
    fn prepare(&mut self) -> Result<(), String> {
        let text = |error: StartError| error.to_string();
        let dirs = &self.config.dirs;
        folders::check(dirs).map_err(text)?;
        let options = store::Options {
            built_in: self.config.built_in.clone(),
            ..store::Options::default()
        };
        let (mut store, _) =
            FolderStore::open_with(&dirs.config, options).map_err(|error| error.to_string())?;
        let loaded = store.load().map_err(|error| error.to_string())?;
        let mut config = self.config.clone();
        let prepared = Prepared::new(&mut config, Box::new(store), |config| {
            Loop::prepare(config, loaded)
        });
        self.prepared = Some(prepared.map_err(text)?);
        Ok(())
    }

    fn restore(&mut self, document: Document, mut imports: Imports) -> Result<(), String> {
        let text = |error: HandoverError| error.to_string();
        let missing = || "it is not prepared".to_owned();
        let prepared = self.prepared.as_mut().ok_or_else(missing)?;
        let Document {
            version: _,
            release: _,
            pid: _,
            core,
            links,
            events,
            control,
            lock,
            stored: _,
        } = document;
        let operators = self.config.operators();
        prepared
            .event_loop
            .resume(core, links, events, &mut imports, operators.clone())
            .map_err(text)?;
        let lock = lock.ok_or("the lock of the folders is missing")?;
        let lock = imports.fd(lock).map_err(text)?;
        let path = self.config.dirs.control();
        let control = match (control, self.config.control) {
            (Some(socket), true) => {
                let socket = imports.fd(socket).map_err(text)?;
                let handle = prepared.handle.clone();
                let server = crate::api::ControlServer::resume(&path, socket, handle, operators);
                Some(server.map_err(|error| format!("cannot serve the control API: {error}"))?)
            }
            _ => None,
        };
        let untaken = imports.untaken();
        if untaken > 0 {
            tracing::warn!(
                "{untaken} descriptors of the other broker are of no use to this release"
            );
        }
        self.restored = Some(Restored { lock, control });
        Ok(())
    }
}

impl Restored {
    /// The broker goes on.
    fn run(self, prepared: Prepared) -> Broker {
        let Self { lock, control } = self;
        let handle = prepared.handle.clone();
        let mut parts = Parts::run(prepared, control);
        if let Some(control) = &parts.control {
            control.gate().open();
        }
        handle.reconcile_services();
        handle.resume_partitions();
        parts.follow();
        parts.adopt_lock(lock);
        if let Err(error) = parts.serve_successors() {
            tracing::error!("this broker cannot be upgraded: {error}");
        }
        Broker::of(parts)
    }
}
