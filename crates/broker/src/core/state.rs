//! The state that the core thread owns.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use hvsock_address::VmId;
use hvsock_endpoint::Dirs;
use hvsock_fabric::{Fabric, PartitionKey, PartitionKind, RegisterError, RootSpec};
use hvsock_registry::store::Loaded;
use hvsock_sys::pidfd::Process;
use mio::Registry;

use super::arenas::Arenas;
use super::attaching::Attaching;
use super::cids::Cids;
use super::connections::Connections;
use super::containers::{BindingNumber, Containers};
use super::data_threads::DataThreads;
use super::devices::Devices;
use super::endpoints::Endpoints;
use super::guest_arenas::GuestArenas;
use super::in_flight::InFlight;
use super::leases::Leases;
use super::left_folders::LeftFolders;
use super::listeners::Listeners;
use super::liveness::Liveness;
use super::offers::Offers;
use super::outer::Outer;
use super::parked::Parked;
use super::pending::{ParkedConnect, PendingConnect};
use super::port_problems::PortProblems;
use super::problems::{Problems, Wakeup, object_of};
use super::replays::Replays;
use super::reports::ReportQueue;
use super::session_io::SessionIo;
use super::sessions::{SessionLimits, Sessions};
use super::stored::Stored;
use super::telemetry::Telemetry;
use super::text_listeners::TextListeners;
use super::uplinks::Uplinks;
use super::vms::Vms;
use crate::audit::Audit;
use crate::budget::{Budget, Charge, DescriptorPlan, Owner, Shares};
use crate::callers::{Caller, Callers};
use crate::data_path::ProcessSocket;
use crate::guest_link::GuestLink;
use crate::kernel_vsock::KernelHosts;
use crate::model::ProblemKind;
use crate::uplink::{Clients, GuestStream};
use crate::{BrokerConfig, StartError};

/// Connections of one partition that arenas leave to others.
const CONNECTIONS_WITHOUT_ARENA: usize = 16_384;

/// The owners of the core's state. Each keeps its own tables consistent and knows none of the others;
/// the methods of `Core`, in the files beside this one, coordinate them.
pub(crate) struct Core {
    pub(crate) fabric: Fabric,
    pub(super) dirs: Dirs,
    pub(super) endpoints: Endpoints,
    pub(super) left_folders: LeftFolders,
    /// Whether a container got another folder than before since [`Core::take_replaced_folders`].
    pub(super) has_replaced_folder: bool,
    pub(super) devices: Devices,
    pub(super) sessions: Sessions<ProcessSocket>,
    pub(super) session_io: SessionIo,
    pub(super) listeners: Listeners,
    pub(super) text_listeners: TextListeners,
    pub(super) offers: Offers,
    pub(super) parked: Parked<ParkedConnect>,
    pub(super) leases: Leases,
    pub(super) stored: Stored,
    pub(super) problems: Problems,
    /// Wakes the thread that tries again what has failed.
    pub(super) retries: Option<Wakeup>,
    pub(super) connections: Connections<PendingConnect>,
    pub(super) attaching: Attaching,
    pub(super) arenas: Arenas,
    pub(super) data_threads: DataThreads,
    pub(super) vms: Vms<Box<dyn GuestLink>>,
    pub(super) containers: Containers,
    pub(super) cids: Cids,
    /// The first processes of the containers that are bound and have not ended.
    pub(super) container_processes: HashMap<PartitionKey, (BindingNumber, Arc<Process>)>,
    pub(super) guest_arenas: GuestArenas,
    /// The guests' connections to the broker itself.
    pub(super) uplink_clients: Clients<GuestStream>,
    pub(super) uplinks: Uplinks,
    /// When to look whether processes still wait for the brokers in guests.
    pub(super) next_look_at_waiting: Option<Instant>,
    /// Watches descriptors for the core.
    pub(super) registry: Arc<Registry>,
    /// The kernel's vsock, for the VMs that it serves.
    pub(super) kernel_hosts: KernelHosts,
    pub(super) port_problems: PortProblems,
    /// Where the link of a new VM reports to.
    pub(super) reports: ReportQueue,
    /// The host, if this machine is a guest of one.
    pub(super) outer: Option<Outer>,
    pub(super) liveness: Liveness,
    pub(super) telemetry: Telemetry,
    pub(super) audit: Audit,
    pub(super) callers: Callers,
    /// The user that the broker runs as.
    pub(super) broker_uid: u32,
    /// The broker's descriptors.
    pub(super) descriptors: Budget,
    pub(super) in_flight: InFlight,
    /// Requests that waited in the broker that this one has taken over.
    pub(super) replays: Replays,
    /// The slots of arenas, of the limit on connections.
    pub(super) arena_slots: Budget,
    /// For the endpoints of containers and the links of VMs.
    pub(super) partition_charges: HashMap<PartitionKey, Charge>,
}

impl Core {
    /// Creates the core and its data threads. Descriptors are watched with `registry`. With `is_guest` its own
    /// partition is a virtual machine.
    pub(super) fn new(
        config: BrokerConfig,
        loaded: Loaded,
        registry: Registry,
        reports: ReportQueue,
        is_guest: bool,
    ) -> Result<Self, StartError> {
        let connections = registry
            .try_clone()
            .map_err(StartError::io("duplicate a descriptor"))?;
        let data_threads = DataThreads::start(
            connections,
            config.data_threads,
            config.shared_memory,
            &reports,
        );
        let operators = config.operators();
        let name = config.partition;
        let root = match is_guest {
            false => RootSpec {
                kind: PartitionKind::Host,
                vm_id: VmId::of_container(name.as_str()),
                name,
            },
            // Another id than that of a host with the same name.
            true => RootSpec {
                kind: PartitionKind::Vm,
                vm_id: VmId::of_container(&format!("the virtual machine {name}")),
                name,
            },
        };
        let built_in = config.built_in.iter().map(|one| one.id).collect::<Vec<_>>();
        let broker_uid = rustix::process::geteuid().as_raw();
        // The rest is for connections without an arena.
        let slots = config.limits.connections_per_partition;
        let slots = slots.saturating_sub(CONNECTIONS_WITHOUT_ARENA) as u64;
        let arena_slots = Shares::new(slots, slots / 8);
        let mut fabric = Fabric::with_operators(root, config.limits, operators);
        let (mut registrations, mut stored) = (hvsock_registry::Registry::new(), Stored::default());
        registrations.set_defaults(loaded.defaults);
        registrations.set_built_in(config.built_in);
        for entry in loaded.entries {
            stored.set_origin(&entry);
            let inserted = registrations.insert(entry.registration);
            inserted.map_err(|clash| StartError::Registrations(clash.into()))?;
        }
        let mut problems = Problems::default();
        for problem in loaded.problems {
            tracing::warn!("{problem}");
            let (kind, object) = (ProblemKind::ConfigFile, object_of(&problem.path));
            problems.raise(kind, object, problem.to_string(), None, Instant::now());
        }
        let too_many = |error: RegisterError| StartError::Registrations(error);
        fabric
            .set_registry(fabric.root(), registrations)
            .map_err(too_many)?;
        let registry = Arc::new(registry);
        let data_threads = data_threads.map_err(StartError::io("start a data thread"))?;
        let limit = hvsock_sys::limits::descriptors();
        let plan = DescriptorPlan::new(limit, crate::process::open_descriptors());
        let in_flight = DescriptorPlan::in_flight(config.soft_descriptors.unwrap_or(limit));
        Ok(Self {
            fabric,
            dirs: config.dirs,
            endpoints: Endpoints::new(Arc::clone(&registry)),
            left_folders: LeftFolders::default(),
            has_replaced_folder: false,
            devices: Devices::default(),
            sessions: Sessions::new(SessionLimits {
                idle_slots: config.idle_sessions.min(plan.idle_sessions()),
                idle_timeout: config.idle_timeout,
            }),
            session_io: SessionIo::new(Arc::clone(&registry)),
            listeners: Listeners::default(),
            text_listeners: TextListeners::default(),
            offers: Offers::default(),
            parked: Parked::default(),
            leases: Leases::default(),
            stored,
            problems,
            retries: None,
            connections: Connections::default(),
            attaching: Attaching::default(),
            arenas: Arenas::default(),
            data_threads,
            vms: Vms::default(),
            containers: Containers::default(),
            cids: Cids::default(),
            container_processes: HashMap::new(),
            guest_arenas: GuestArenas::default(),
            uplink_clients: Clients::default(),
            uplinks: Uplinks::default(),
            next_look_at_waiting: None,
            registry,
            kernel_hosts: KernelHosts::default(),
            port_problems: PortProblems::default(),
            reports,
            outer: None,
            liveness: Liveness::default(),
            telemetry: Telemetry::default(),
            audit: Audit::new(config.audit, built_in),
            callers: Callers::new(),
            broker_uid,
            descriptors: Budget::new(plan.shared()),
            in_flight: InFlight::new(Budget::new(in_flight)),
            replays: Replays::default(),
            arena_slots: Budget::new(arena_slots),
            partition_charges: HashMap::new(),
        })
    }

    /// Who what a process uses is charged to.
    pub(super) fn owner(&self, partition: PartitionKey, caller: Caller) -> Owner {
        Owner::of(self.broker_uid, self.fabric.root(), partition, caller.uid)
    }
}
