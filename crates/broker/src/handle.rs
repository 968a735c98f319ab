//! The control interface of a running broker, callable from any thread.

mod access;
mod checks;
mod containers;
mod error;
mod partitions;
mod services;
#[cfg(test)]
mod tests;
mod upgrades;
mod vms;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hvsock_address::{PartitionName, PartitionRef, ServiceId, ServiceRef, SockAddrHv, VmId};
use hvsock_endpoint::Dirs;
use hvsock_fabric::{
    ConnectRequest, ConnectionId, Explanation, ListenRequest, PartitionKey, Refusal,
};
use hvsock_registry::Principal;
use hvsock_virtio::InvalidCid;

use crate::callers::Caller;
use crate::containers::{BindingFiles, Orders};
use crate::core::{AddError, AskedGuest, Core, CoreCall, CoreLink, GUEST_TIMEOUT, HandOver};
use crate::events::{EventStream, NotResumable, RecordScope};
use crate::model::{
    AuditFilter, AuditRecord, BrokerThread, Connection, ExplanationReport, Listener,
    MetricsSnapshot, Status,
};
use crate::stores::{PartitionStore, ServiceStore};
use crate::upgrade::Upgrades;
use crate::uplink::{Silence, add_guest};
use crate::watchdog::{Role, ThreadWatch, Watchdog};
use error::CALL_TIMEOUT;
pub use error::{ControlError, ObjectKind};

/// The records of an answer without a limit.
const DEFAULT_RECORDS: usize = 1000;

/// A handle to a running broker, to query and control it. Clones refer to the same broker.
///
/// Calls block for up to 5 s per request to the core thread, and while they write files. Async code
/// calls them from a blocking task.
///
/// # Errors
///
/// Any method that returns a `Result` fails with [`ControlError::Busy`] if the core thread does not
/// answer within 5 s, and with [`ControlError::Stopped`] after the [`Broker`](crate::Broker) was
/// dropped. Methods that write files fail with [`ControlError::Store`] or [`ControlError::System`]
/// if that fails. The methods' own sections list further errors.
#[derive(Clone)]
pub struct Handle {
    link: CoreLink,
    pub(crate) services: Arc<ServiceStore>,
    partitions: Arc<PartitionStore>,
    bindings: Arc<BindingFiles>,
    /// Who observes the containers of runtimes.
    observer: Orders,
    about: Arc<About>,
    pub(crate) upgrades: Arc<Upgrades>,
}

struct About {
    /// The number of calls of the core.
    #[cfg(test)]
    calls: std::sync::atomic::AtomicUsize,
    dirs: Dirs,
    partition: PartitionName,
    started: Instant,
    started_at: SystemTime,
}

impl Handle {
    pub(crate) fn new(
        link: CoreLink,
        services: Arc<ServiceStore>,
        partitions: Arc<PartitionStore>,
        observer: Orders,
        dirs: Dirs,
        partition: PartitionName,
        upgrades: Arc<Upgrades>,
    ) -> Self {
        let bindings = Arc::new(BindingFiles::new(&dirs));
        let (started, started_at) = (Instant::now(), SystemTime::now());
        let about = Arc::new(About {
            #[cfg(test)]
            calls: Default::default(),
            dirs,
            partition,
            started,
            started_at,
        });
        Self {
            link,
            services,
            partitions,
            bindings,
            observer,
            about,
            upgrades,
        }
    }

    /// A summary of the broker: version, folders, object counts, and problems.
    ///
    /// # Errors
    ///
    /// [`ControlError::Busy`] or [`ControlError::Stopped`].
    pub fn status(&self) -> Result<Status, ControlError> {
        let summary = self.call(Core::summary)?;
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uid: own_uid(),
            uptime_seconds: self.about.started.elapsed().as_secs(),
            run_dir: self.about.dirs.run.clone(),
            config_dir: self.about.dirs.config.clone(),
            partition: self.about.partition.clone(),
            services: summary.services,
            partitions: summary.partitions,
            listeners: summary.listeners,
            connections: summary.connections,
            problems: summary.problems,
            descriptors: summary.descriptors,
            unread_messages: summary.unread_messages,
            threads: self.threads(),
            confinement: Some(crate::sandbox::report()),
        })
    }

    /// The broker's threads, by name. Works without the core, so also while that hangs.
    pub fn threads(&self) -> Vec<BrokerThread> {
        self.watchdog().threads()
    }

    /// Every listener, oldest first.
    ///
    /// # Errors
    ///
    /// [`ControlError::Busy`] or [`ControlError::Stopped`].
    pub fn listeners(&self) -> Result<Vec<Listener>, ControlError> {
        self.call(Core::listeners)
    }

    /// Every established connection, oldest first.
    ///
    /// # Errors
    ///
    /// [`ControlError::Busy`] or [`ControlError::Stopped`].
    pub fn connections(&self) -> Result<Vec<Connection>, ControlError> {
        self.call(Core::connections)
    }

    /// Closes a connection; both ends see a reset (`ECONNRESET`). Returns its last state.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotFound`] if there is no such connection.
    #[doc(alias = "reset")]
    #[doc(alias = "disconnect")]
    pub fn close_connection(&self, connection: u64) -> Result<Connection, ControlError> {
        let id = ConnectionId::from_u64(connection);
        let closed = self.call(move |core| {
            let seen = core.connection(id)?;
            let cause = "an operator closed the connection".into();
            core.reset_connection(id, Refusal::Reset { cause });
            Some(seen)
        })?;
        closed.ok_or_else(|| ControlError::unknown_connection(connection))
    }

    /// Explains what a connect would result in, step by step, without connecting. `from` defaults to
    /// the broker's own partition.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotFound`] for an unknown partition or service name. A service id need not be
    /// registered.
    pub fn explain_connect(
        &self,
        from: Option<&PartitionRef>,
        to: &PartitionRef,
        service: &ServiceRef,
        principal: Principal,
    ) -> Result<ExplanationReport, ControlError> {
        let (from, vm, service) = self.resolve(from, to, service)?;
        let (answer, with_host) = sync_channel(1);
        let (mut explanation, asked) = self.call(move |core| {
            let from = from.unwrap_or_else(|| core.fabric.root());
            let request = ConnectRequest {
                from,
                principal: &principal,
                vm,
                service,
            };
            let mut explanation = core.explain_connect(&request);
            let asked = core.ask_to_explain(&request, &mut explanation);
            if asked.is_none() {
                let (from, address) = (request.from, SockAddrHv::new(vm, service));
                core.explain_to_operator(from, address, explanation.clone(), answer);
            }
            (explanation, asked)
        })?;
        match asked {
            // The host of this machine may have to be asked.
            None => explanation = received(&with_host)?,
            Some(Ok(asked)) => self.add_answer(&mut explanation, asked),
            Some(Err((vm, silence))) => add_guest(&mut explanation, &vm, Err(silence)),
        }
        Ok(ExplanationReport::from(&explanation))
    }

    /// Waits for what the broker in a guest says, and adds it to the host's explanation.
    fn add_answer(&self, explanation: &mut Explanation, asked: AskedGuest) {
        let answer = asked.answer.recv_timeout(GUEST_TIMEOUT);
        let said = answer.as_ref().map_err(|_| Silence::NoAnswer);
        add_guest(explanation, &asked.name, said);
        if answer.is_err() {
            self.post(move |core| core.give_up_explanation(&asked));
        }
    }

    /// Explains what a listen would result in, step by step, without listening. `from` is the
    /// listener's partition, `accept` the partition that it accepts connections from.
    ///
    /// # Errors
    ///
    /// As [`explain_connect`](Self::explain_connect).
    pub fn explain_listen(
        &self,
        from: Option<&PartitionRef>,
        accept: &PartitionRef,
        service: &ServiceRef,
        principal: Principal,
    ) -> Result<ExplanationReport, ControlError> {
        let (from, vm, service) = self.resolve(from, accept, service)?;
        self.call(move |core| {
            let from = from.unwrap_or_else(|| core.fabric.root());
            // Nobody asks for a process in another partition: the answer is for its root, and says so.
            let principal = &Principal {
                partition_uid: Some(0),
                ..principal
            };
            let request = ListenRequest {
                from,
                principal,
                vm,
                service,
                backlog: 1,
            };
            ExplanationReport::from(&core.explain_listen(&request))
        })
    }

    /// Subscribes to the events from now on.
    ///
    /// # Errors
    ///
    /// [`ControlError::Limit`] if there are 64 subscribers already.
    #[doc(alias = "subscribe")]
    pub fn events(&self) -> Result<EventStream, ControlError> {
        self.events_with_records(RecordScope::None)
    }

    /// Subscribes to the events from now on, and to the records of the audit in `records`.
    ///
    /// # Errors
    ///
    /// As [`events`](Self::events).
    pub fn events_with_records(&self, records: RecordScope) -> Result<EventStream, ControlError> {
        self.call(move |core| core.subscribe(records))?
            .ok_or(ControlError::Limit("event subscribers"))
    }

    /// As [`events_with_records`](Self::events_with_records), after the last event of a stream that ended with
    /// [`EventKind::HandedOver`](crate::model::EventKind::HandedOver): none is missing, and none is there twice.
    ///
    /// # Errors
    ///
    /// As [`events`](Self::events), and [`ControlError::Invalid`] if that is longer ago than ten seconds.
    pub fn events_resumed(
        &self,
        records: RecordScope,
        resume: String,
    ) -> Result<EventStream, ControlError> {
        let resumed = self.call(move |core| core.resume_events(records, &resume))?;
        let resumed = resumed.map_err(|NotResumable| {
            let what = "this stream of events cannot be resumed any more; open another one";
            ControlError::Invalid(what.into())
        })?;
        resumed.ok_or(ControlError::Limit("event subscribers"))
    }

    /// The records of the audit in `scope` that a filter selects, oldest first.
    ///
    /// # Errors
    ///
    /// [`ControlError::Busy`] or [`ControlError::Stopped`].
    #[doc(alias = "log")]
    pub fn audit(
        &self,
        scope: RecordScope,
        filter: AuditFilter,
    ) -> Result<Vec<Arc<AuditRecord>>, ControlError> {
        let own = self.about.partition.to_string();
        // The limit counts only what the caller may see.
        let (limit, all) = (filter.limit, Some(usize::MAX));
        let filter = AuditFilter {
            limit: all,
            ..filter
        };
        let mut records = self.call(move |core| core.audit_records(&filter))?;
        records.retain(|record| scope.contains(record, &own));
        let limit = limit.unwrap_or(DEFAULT_RECORDS);
        Ok(records.split_off(records.len().saturating_sub(limit)))
    }

    /// Records a change that a process made or tried to make.
    pub(crate) fn record_change(
        &self,
        caller: Caller,
        operator: bool,
        record: AuditRecord,
    ) -> Result<(), ControlError> {
        self.call(move |core| core.record_change(caller, operator, record))
    }

    /// Records what a process says about the end of its own connection.
    pub(crate) fn claim_result(
        &self,
        connection: u64,
        caller: Caller,
        result: String,
    ) -> Result<String, ControlError> {
        self.call(move |core| core.claim_result(connection, caller, &result))?
            .ok_or_else(|| ControlError::unknown_connection(connection))
    }

    /// A snapshot of all metrics.
    ///
    /// # Errors
    ///
    /// [`ControlError::Busy`] or [`ControlError::Stopped`].
    pub fn metrics(&self) -> Result<MetricsSnapshot, ControlError> {
        let (services, refusals, partitions, guests, problems, shared, audit) =
            self.call(|core| {
                (
                    core.service_metrics(),
                    core.refusal_metrics(),
                    core.partition_metrics(),
                    core.guests(),
                    core.problem_metrics(),
                    core.shared_resources(),
                    core.audit_metrics(),
                )
            })?;
        let [descriptors, unread_messages] = shared;
        let since = self
            .about
            .started_at
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Ok(MetricsSnapshot {
            services,
            refusals,
            partitions,
            problems,
            guests,
            descriptors,
            unread_messages,
            audit,
            threads: self.threads(),
            hangs: self.watchdog().hangs(),
            panics: self.watchdog().panics(),
            denied_calls: crate::sandbox::report().denied,
            open_fds: crate::process::open_descriptors(),
            resident_bytes: crate::process::resident_bytes(),
            start_time_seconds: since.as_secs_f64(),
        })
    }

    /// The watched threads.
    pub(crate) fn watchdog(&self) -> &Watchdog {
        self.link.watchdog()
    }

    /// How a thread of this role is watched.
    pub(crate) fn watch(&self, role: Role) -> ThreadWatch {
        self.watchdog().of(role)
    }

    /// Runs `work` on the core thread and waits for what it returns.
    pub(crate) fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Core) -> R + Send + 'static,
    ) -> Result<R, ControlError> {
        #[cfg(test)]
        let _ = (self.about.calls).fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (sender, result) = sync_channel(1);
        let call = Box::new(move |core: &mut Core| {
            let answer = work(core);
            // What the call has forbidden must not be possible any more when the caller knows it.
            core.judge_arenas();
            // The caller may have timed out.
            let _ = sender.send(answer);
        });
        let sent = self.link.send(CoreCall::Run(call));
        sent.map_err(|_gone| ControlError::Stopped)?;
        received(&result)
    }

    /// Queues `work` for the core thread without waiting. Does nothing if the broker has stopped.
    pub(crate) fn post(&self, work: impl FnOnce(&mut Core) + Send + 'static) {
        let _ = self.link.send(CoreCall::Run(Box::new(work)));
    }

    /// Has the core thread hand the broker over.
    pub(crate) fn hand_over(&self, hand_over: HandOver) -> Result<(), ControlError> {
        let sent = self.link.send(CoreCall::HandOver(Box::new(hand_over)));
        sent.map_err(|_gone| ControlError::Stopped)
    }

    /// Has the core thread end, after the calls that are queued.
    pub(crate) fn stop(&self) {
        let _ = self.link.send(CoreCall::Stop);
    }

    /// Runs `work` on the core thread with the key of `partition`.
    pub(crate) fn on_partition<R: Send + 'static>(
        &self,
        partition: &PartitionRef,
        work: impl FnOnce(&mut Core, PartitionKey) -> R + Send + 'static,
    ) -> Result<R, ControlError> {
        let wanted = partition.clone();
        self.call(move |core| core.find(&wanted).map(|key| work(core, key)))?
            .ok_or_else(|| ControlError::unknown_partition(partition))
    }

    fn service_id(&self, service: &ServiceRef) -> Result<ServiceId, ControlError> {
        let wanted = service.clone();
        self.call(move |core| core.registration(&wanted).map(|found| found.id))?
            .ok_or_else(|| ControlError::unknown_service(service))
    }

    /// Resolves names to keys and ids. A service given by its id need not be registered.
    fn resolve(
        &self,
        from: Option<&PartitionRef>,
        other: &PartitionRef,
        service: &ServiceRef,
    ) -> Result<(Option<PartitionKey>, VmId, ServiceId), ControlError> {
        let from = from
            .map(|from| self.on_partition(from, |_, key| key))
            .transpose()?;
        let vm = match other {
            PartitionRef::Id(id) => *id,
            PartitionRef::Name(_) => self.partition(other)?.id,
        };
        let service = match service {
            ServiceRef::Id(id) => {
                let wanted = service.clone();
                let found =
                    self.call(move |core| core.registration(&wanted).map(|found| found.id))?;
                found.unwrap_or(*id)
            }
            ServiceRef::Name(_) => self.service_id(service)?,
        };
        Ok((from, vm, service))
    }
}

impl From<AddError> for ControlError {
    fn from(error: AddError) -> Self {
        match error {
            AddError::Fabric(error) => error.into(),
            AddError::Change(error) => error.into(),
            AddError::Endpoint(error) => Self::System(error.to_string()),
            AddError::CidTaken { .. } => Self::CidTaken(error.to_string()),
            AddError::HybridPathTaken { .. } => Self::HybridPathTaken(error.to_string()),
            AddError::OwnSocket(_) => Self::Invalid(error.to_string()),
        }
    }
}

/// What the core thread sends.
fn received<R>(answer: &Receiver<R>) -> Result<R, ControlError> {
    answer
        .recv_timeout(CALL_TIMEOUT)
        .map_err(|error| match error {
            RecvTimeoutError::Timeout => ControlError::Busy,
            RecvTimeoutError::Disconnected => ControlError::Stopped,
        })
}

fn invalid(error: InvalidCid) -> ControlError {
    ControlError::Invalid(error.to_string())
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}
