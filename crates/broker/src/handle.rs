//! What an operator can ask a running broker for, from any thread.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hvsock_address::{PartitionName, PartitionRef, ServiceId, ServiceRef, VmId};
use hvsock_endpoint::Dirs;
use hvsock_fabric::{
    AddPartitionError, Audience, ConnectRequest, ConnectionId, ListenRequest, PartitionError,
    PartitionKey, PartitionSpec, Refusal, RegisterError,
};
use hvsock_registry::store::{Change, StoreError};
use hvsock_registry::{Clash, Principal, Registration};
use hvsock_virtio::{GuestCid, InvalidCid};

use crate::core::{AddError, Core, CoreLink};
use crate::events::EventStream;
use crate::model::{
    Connection, Explanation, Listener, MetricsSnapshot, NewContainer, NewService, NewVm, Partition,
    PartitionKind, PartitionState, Service, Status,
};
use crate::stores::{
    PartitionEntry, PartitionFiles, PartitionStore, ServiceStore, ServiceStoreGuard, VmEntry,
    VmmUser,
};

/// How long a call waits for the core.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a broker did not do what an operator asked for.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nothing has this name or number.
    #[error("no {kind} `{what}` is known here; {next}")]
    NotFound {
        /// What kind of thing.
        kind: &'static str,
        /// What was looked for.
        what: String,
        /// How to see what is known.
        next: &'static str,
    },
    /// A GUID, port or name is taken.
    #[error(transparent)]
    Clash(#[from] Clash),
    /// A partition cannot be added.
    #[error(transparent)]
    Add(#[from] AddPartitionError),
    /// Another VM has the context id.
    #[error("{0}")]
    CidTaken(String),
    /// A partition cannot be changed like this.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// A registration cannot be taken in.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A file could not be written; nothing has changed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system said no; nothing has changed.
    #[error("{0}")]
    System(String),
    /// A table is full.
    #[error("there is no room for more {0}")]
    Limit(&'static str),
    /// The core did not answer in time.
    #[error("the broker did not answer within {} seconds; try again", PATIENCE.as_secs())]
    Busy,
    /// The broker has stopped.
    #[error("the broker has stopped; start it with `hvsock broker`")]
    Stopped,
}

/// A running broker, for an operator. Calls block, for a few seconds at the most; async code
/// makes them where blocking is allowed.
#[derive(Clone)]
pub struct Handle {
    link: CoreLink,
    services: Arc<ServiceStore>,
    partitions: Arc<PartitionStore>,
    about: Arc<About>,
}

struct About {
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
        dirs: Dirs,
        partition: PartitionName,
    ) -> Self {
        let (started, started_at) = (Instant::now(), SystemTime::now());
        let about = Arc::new(About {
            dirs,
            partition,
            started,
            started_at,
        });
        Self {
            link,
            services,
            partitions,
            about,
        }
    }

    /// The broker at a glance.
    pub fn status(&self) -> Result<Status, ControlError> {
        let census = self.call(|core| core.summary())?;
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uid: own_uid(),
            uptime_seconds: self.about.started.elapsed().as_secs(),
            run_dir: self.about.dirs.run.clone(),
            config_dir: self.about.dirs.config.clone(),
            partition: self.about.partition.clone(),
            services: self.call(|core| core.service_count())? - self.services.built_in_count(),
            partitions: census.partitions,
            listeners: census.listeners,
            connections: census.connections,
            problems: [self.services.problems(), self.partitions.problems()].concat(),
        })
    }

    /// Every registration by friendly name, with what uses it; with `all` those as well that are
    /// built in and nobody has changed, and those that ship with Windows.
    pub fn services(&self, all: bool) -> Result<Vec<Service>, ControlError> {
        let (usage, leases) = self.call(|core| (core.usage(), core.leases()))?;
        let mut registrations = self.services.registrations();
        registrations.retain(|(_, built_in)| all || !built_in);
        registrations.extend(leases.into_iter().map(|lease| (lease, false)));
        let mut services: Vec<Service> = registrations
            .into_iter()
            .map(|(registration, built_in)| {
                let usage = usage.get(&registration.id).copied().unwrap_or_default();
                Service {
                    built_in,
                    ..usage.of(registration)
                }
            })
            .collect();
        if all {
            services.extend(Service::in_box());
        }
        services.sort_by_cached_key(|service| service.name.folded());
        Ok(services)
    }

    /// One registration.
    pub fn service(&self, service: &ServiceRef) -> Result<Service, ControlError> {
        let found = {
            let service = service.clone();
            self.call(move |core| {
                let registration = core.registration(&service)?;
                let usage = core
                    .usage()
                    .get(&registration.id)
                    .copied()
                    .unwrap_or_default();
                Some(usage.of(registration))
            })?
        };
        let found = found.ok_or_else(|| unknown_service(service))?;
        Ok(Service {
            built_in: self.services.is_built_in(found.id),
            ..found
        })
    }

    /// Registers a service, for good.
    pub fn register(&self, new: NewService, owner: String) -> Result<Service, ControlError> {
        let registration = new
            .registration(Some(owner))
            .map_err(|error| ControlError::Invalid(error.to_string()))?;
        let id = registration.id;
        let mut store = self.services.lock();
        self.add(&mut store, registration)?;
        drop(store);
        self.service(&id.into())
    }

    /// Registers services that were exported elsewhere: all of them, or none if one clashes or
    /// cannot be written. Those that are there already with the same name are left as they are.
    /// Returns what was added.
    pub fn import(&self, new: Vec<Registration>) -> Result<Vec<Service>, ControlError> {
        let mut store = self.services.lock();
        let wanted = self.call(move |core| core.select_new(new))??;
        let mut ids = HashSet::new();
        for registration in wanted {
            let id = registration.id;
            if let Err(error) = self.add(&mut store, registration) {
                for id in ids {
                    let changes = store.remove(id)?;
                    self.apply(changes)?;
                }
                return Err(error);
            }
            ids.insert(id);
        }
        drop(store);
        let services = self.services(false)?;
        Ok(services
            .into_iter()
            .filter(|service| ids.contains(&service.id))
            .collect())
    }

    /// Every registration that is kept on disk, for an export.
    pub fn export(&self) -> Vec<Registration> {
        let registrations = self.services.registrations().into_iter();
        let mut registrations: Vec<Registration> = registrations
            .filter(|(_, built_in)| !built_in)
            .map(|(registration, _)| registration)
            .collect();
        registrations.sort_by_cached_key(|registration| registration.name.folded());
        registrations
    }

    fn add(
        &self,
        store: &mut ServiceStoreGuard<'_>,
        registration: Registration,
    ) -> Result<(), ControlError> {
        // First whether the core would take it, so that a clash with a lease leaves no file.
        let asked = registration.clone();
        self.call(move |core| core.would_clash(&asked))?
            .map_or(Ok(()), Err)?;
        let id = registration.id;
        let changes = store.put(registration)?;
        if let Err(error) = self.call(move |core| core.apply_own(changes, id))? {
            let changes = store.remove(id)?;
            self.apply(changes)?;
            return Err(error.into());
        }
        Ok(())
    }

    /// Switches a service on or off, for everyone or for one child partition.
    pub fn set_enabled(
        &self,
        service: &ServiceRef,
        enabled: bool,
        partition: Option<&PartitionRef>,
    ) -> Result<Service, ControlError> {
        let id = self.service_id(service)?;
        let name = partition
            .map(|partition| self.partition_name(partition))
            .transpose()?;
        let mut store = self.services.lock();
        if self.is_lease(id)? {
            let what = "a lease belongs to the process that made it and cannot be changed; end \
                        the process instead";
            return Err(ControlError::Invalid(what.into()));
        }
        let changes = store.set_enabled(id, enabled, name.as_ref())?;
        self.call(move |core| core.apply_own(changes, id))??;
        drop(store);
        self.service(&id.into())
    }

    /// Unregisters a service; its listeners and connections are cut. One that is built in is then as
    /// it was built in.
    pub fn unregister(&self, service: &ServiceRef) -> Result<Service, ControlError> {
        let gone = self.service(service)?;
        let id = gone.id;
        let mut store = self.services.lock();
        if !gone.lease {
            let changes = store.remove(id)?;
            self.apply(changes)?;
        }
        if !store.is_built_in(id) {
            self.call(move |core| core.unregister(id))?;
        }
        Ok(gone)
    }

    /// Takes what files say now into the core.
    pub(crate) fn apply(&self, changes: Vec<Change>) -> Result<(), ControlError> {
        self.call(move |core| {
            for change in changes {
                core.apply(change);
            }
        })
    }

    /// Adds the partitions that were kept on disk. One that cannot be added is a problem to
    /// report and keeps no other out: a container's processes may be able to write to the folder
    /// of its endpoint, and what they leave there must not keep the broker from starting.
    pub(crate) fn restore(&self, entries: Vec<(PartitionName, PartitionEntry)>) {
        for (name, entry) in entries {
            let spec = entry.spec(name.clone());
            let kind = spec.kind;
            if let Err(error) = self.add_partition(&entry, spec) {
                let problem = format!("the {kind} {name} was not added: {error}");
                tracing::warn!("{problem}");
                self.partitions.add_problem(problem);
            }
        }
    }

    fn add_partition(
        &self,
        entry: &PartitionEntry,
        spec: PartitionSpec,
    ) -> Result<(), ControlError> {
        let vm = entry.as_vm().map_err(ControlError::Invalid)?;
        let added = self.call(move |core| match vm {
            Some(vm) => core.add_vm(spec, vm),
            None => core.add_container(spec),
        });
        Ok(added??)
    }

    /// Every partition, the broker's own first.
    pub fn partitions(&self) -> Result<Vec<Partition>, ControlError> {
        self.call(|core| core.partitions())
    }

    /// One partition.
    pub fn partition(&self, partition: &PartitionRef) -> Result<Partition, ControlError> {
        let name = self.partition_name(partition)?;
        let found = self
            .partitions()?
            .into_iter()
            .find(|partition| partition.name == name);
        found.ok_or_else(|| unknown_partition(partition))
    }

    /// Adds a container, for good.
    pub fn add_container(&self, new: NewContainer) -> Result<Partition, ControlError> {
        let id = new
            .id
            .unwrap_or_else(|| VmId::of_container(new.name.as_str()));
        let mut files = self.partitions.lock();
        let entry = PartitionEntry::container(id, new.groups);
        self.add_persistent(&mut files, new.name, &entry)
    }

    /// Adds a VM, for good.
    pub fn add_vm(&self, new: NewVm) -> Result<Partition, ControlError> {
        let id = new.id.unwrap_or_else(VmId::random);
        let asked = new.cid.map(|cid| GuestCid::try_from(u64::from(cid)));
        let asked = asked.transpose().map_err(invalid)?;
        let user = new.user.map(VmmUser::find).transpose();
        let user = user.map_err(ControlError::Invalid)?;
        // Held from here on, so that the CID stays free until the VM has it.
        let mut files = self.partitions.lock();
        let cid = match asked {
            Some(cid) => cid,
            None => {
                let free = self.call(|core| core.free_cid())?;
                free.ok_or(ControlError::Limit("CIDs"))?
            }
        };
        let vm = VmEntry {
            cid,
            unsealed_memory: new.unsealed_memory,
            user,
        };
        let entry = PartitionEntry::vm(id, new.groups, vm);
        self.add_persistent(&mut files, new.name, &entry)
    }

    fn add_persistent(
        &self,
        files: &mut PartitionFiles,
        name: PartitionName,
        entry: &PartitionEntry,
    ) -> Result<Partition, ControlError> {
        let spec = entry.spec(name.clone());
        let id = spec.vm_id;
        if id.is_well_known() {
            let what = format!("{id} is a well-known address and cannot be a partition's id");
            return Err(ControlError::Invalid(what));
        }
        self.add_partition(entry, spec)?;
        if let Err(error) = files.put(&name, entry) {
            self.on_partition(&PartitionRef::Name(name), |core, key| {
                core.remove_partition(key);
            })?;
            return Err(error);
        }
        self.partition(&PartitionRef::Name(name))
    }

    /// Removes a partition with all that its processes have open.
    pub fn remove_partition(&self, partition: &PartitionRef) -> Result<Partition, ControlError> {
        let mut files = self.partitions.lock();
        let gone = self.child(partition)?;
        files.remove(&gone.name)?;
        let name = PartitionRef::Name(gone.name.clone());
        self.on_partition(&name, Core::remove_partition)?;
        Ok(gone)
    }

    /// Pauses or resumes a partition.
    pub fn set_state(
        &self,
        partition: &PartitionRef,
        state: PartitionState,
    ) -> Result<Partition, ControlError> {
        let child = self.child(partition)?;
        if state == PartitionState::Off {
            let what = match child.kind {
                PartitionKind::Vm => "a VM is off when its VMM ends; end that",
                _ => "a container is off when it is removed; `hvsock container remove`",
            };
            return Err(ControlError::Invalid(what.into()));
        }
        self.on_partition(partition, move |core, key| {
            core.set_state(key, state.into())
        })??;
        self.partition(&PartitionRef::Name(child.name))
    }

    /// Changes the sibling groups that a partition is in.
    pub fn set_groups(
        &self,
        partition: &PartitionRef,
        groups: Vec<String>,
    ) -> Result<Partition, ControlError> {
        let mut files = self.partitions.lock();
        let child = self.child(partition)?;
        // First whether the core would take it, so that one that it would not leaves no file.
        if groups.len() > self.call(|core| core.fabric.limits().groups_per_partition)? {
            let which = "groups_per_partition";
            return Err(PartitionError::LimitReached { which }.into());
        }
        let cid = child.cid.map(|cid| GuestCid::try_from(u64::from(cid)));
        let entry = match cid.transpose().map_err(invalid)? {
            None => PartitionEntry::container(child.id, groups.clone()),
            Some(cid) => {
                let user = child.user.map(VmmUser::find).transpose();
                let vm = VmEntry {
                    cid,
                    unsealed_memory: child.unsealed_memory,
                    user: user.map_err(ControlError::Invalid)?,
                };
                PartitionEntry::vm(child.id, groups.clone(), vm)
            }
        };
        files.put(&child.name, &entry)?;
        self.on_partition(partition, move |core, key| core.set_groups(key, groups))??;
        drop(files);
        self.partition(&PartitionRef::Name(child.name))
    }

    /// Every listener, oldest first.
    pub fn listeners(&self) -> Result<Vec<Listener>, ControlError> {
        self.call(Core::listeners)
    }

    /// Every connection, oldest first.
    pub fn connections(&self) -> Result<Vec<Connection>, ControlError> {
        self.call(Core::connections)
    }

    /// Cuts a connection; both ends see a reset.
    pub fn cut(&self, connection: u64) -> Result<Connection, ControlError> {
        let id = ConnectionId::from_u64(connection);
        let cut = self.call(move |core| {
            let seen = core.connection(id)?;
            let cause = "an operator cut the connection".into();
            core.reset_connection(id, Refusal::Reset { cause });
            Some(seen)
        })?;
        cut.ok_or_else(|| ControlError::NotFound {
            kind: "connection",
            what: connection.to_string(),
            next: "`hvsock connections` shows those that are",
        })
    }

    /// What a connect would meet, and why. `from` is the broker's own partition if absent.
    pub fn explain_connect(
        &self,
        from: Option<&PartitionRef>,
        to: &PartitionRef,
        service: &ServiceRef,
        principal: Principal,
    ) -> Result<Explanation, ControlError> {
        let (from, vm, service) = self.question(from, to, service)?;
        self.call(move |core| {
            let from = from.unwrap_or_else(|| core.fabric.root());
            let request = ConnectRequest {
                from,
                principal: &principal,
                vm,
                service,
            };
            Explanation::from(&core.fabric.explain_connect(&request, Audience::Operator))
        })
    }

    /// What a listen would meet, and why. `from` is where the listener would be, and `accept`
    /// whom it would accept from.
    pub fn explain_listen(
        &self,
        from: Option<&PartitionRef>,
        accept: &PartitionRef,
        service: &ServiceRef,
        principal: Principal,
    ) -> Result<Explanation, ControlError> {
        let (from, vm, service) = self.question(from, accept, service)?;
        self.call(move |core| {
            let from = from.unwrap_or_else(|| core.fabric.root());
            let principal = &principal;
            let request = ListenRequest {
                from,
                principal,
                vm,
                service,
                backlog: 1,
            };
            Explanation::from(&core.fabric.explain_listen(&request, Audience::Operator))
        })
    }

    /// Events from now on.
    pub fn events(&self) -> Result<EventStream, ControlError> {
        self.call(|core| core.events.subscribe())?
            .ok_or(ControlError::Limit("readers of events"))
    }

    /// Everything that is counted, as it stands now.
    pub fn metrics(&self) -> Result<MetricsSnapshot, ControlError> {
        let (services, refusals, partitions, guests) = self.call(|core| {
            (
                core.service_metrics(),
                core.refusal_metrics(),
                core.partition_metrics(),
                core.guests(),
            )
        })?;
        let since = self
            .about
            .started_at
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Ok(MetricsSnapshot {
            services,
            refusals,
            partitions,
            guests,
            open_fds: crate::process::open_descriptors(),
            resident_bytes: crate::process::resident_bytes(),
            start_time_seconds: since.as_secs_f64(),
        })
    }

    /// Runs `work` on the core thread and waits for what it returns.
    pub(crate) fn call<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Core) -> R + Send + 'static,
    ) -> Result<R, ControlError> {
        let (answer, answered) = sync_channel(1);
        let command = Box::new(move |core: &mut Core| {
            // Whoever asked may have lost patience.
            let _ = answer.send(work(core));
        });
        self.link
            .calls
            .send(command)
            .map_err(|_| ControlError::Stopped)?;
        let _ = self.link.waker.wake();
        answered
            .recv_timeout(PATIENCE)
            .map_err(|error| match error {
                RecvTimeoutError::Timeout => ControlError::Busy,
                RecvTimeoutError::Disconnected => ControlError::Stopped,
            })
    }

    /// Runs `work` on the core thread some time soon, if that still runs.
    pub(crate) fn post(&self, work: impl FnOnce(&mut Core) + Send + 'static) {
        if self.link.calls.send(Box::new(work)).is_ok() {
            let _ = self.link.waker.wake();
        }
    }

    pub(crate) fn on_partition<R: Send + 'static>(
        &self,
        partition: &PartitionRef,
        work: impl FnOnce(&mut Core, PartitionKey) -> R + Send + 'static,
    ) -> Result<R, ControlError> {
        let wanted = partition.clone();
        self.call(move |core| core.find(&wanted).map(|key| work(core, key)))?
            .ok_or_else(|| unknown_partition(partition))
    }

    /// A partition that is not the broker's own.
    fn child(&self, partition: &PartitionRef) -> Result<Partition, ControlError> {
        let child = self.partition(partition)?;
        if child.parent.is_none() {
            let what = format!("{} is the broker's own partition", child.name);
            return Err(ControlError::Invalid(what));
        }
        Ok(child)
    }

    fn partition_name(&self, partition: &PartitionRef) -> Result<PartitionName, ControlError> {
        self.on_partition(partition, |core, key| {
            core.fabric
                .partition(key)
                .map(|partition| partition.name().clone())
        })?
        .ok_or_else(|| unknown_partition(partition))
    }

    fn service_id(&self, service: &ServiceRef) -> Result<ServiceId, ControlError> {
        let wanted = service.clone();
        let found = self.call(move |core| core.registration(&wanted))?;
        found
            .map(|registration| registration.id)
            .ok_or_else(|| unknown_service(service))
    }

    fn is_lease(&self, id: ServiceId) -> Result<bool, ControlError> {
        let found = self.call(move |core| core.registration(&ServiceRef::Id(id)))?;
        Ok(found.is_some_and(|registration| registration.lease))
    }

    /// The keys and ids behind what an operator wrote. A service need not be registered to be
    /// asked about, if it is given by its id.
    fn question(
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
                let found = self.call(move |core| core.registration(&wanted))?;
                found.map_or(*id, |registration| registration.id)
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
            AddError::Endpoint(error) => Self::System(error.to_string()),
            AddError::CidTaken { .. } => Self::CidTaken(error.to_string()),
        }
    }
}

fn invalid(error: InvalidCid) -> ControlError {
    ControlError::Invalid(error.to_string())
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn unknown_service(service: &ServiceRef) -> ControlError {
    ControlError::NotFound {
        kind: "service",
        what: service.to_string(),
        next: "`hvsock service list` shows those that are, `hvsock service register` adds one",
    }
}

fn unknown_partition(partition: &PartitionRef) -> ControlError {
    ControlError::NotFound {
        kind: "partition",
        what: partition.to_string(),
        next: "`hvsock status` shows those that are, `hvsock container add` and `hvsock vm add` \
               add one",
    }
}
