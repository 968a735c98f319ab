//! The threads and locks of a broker, and the order in which they begin and end.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use hvsock_endpoint::Dirs;
use hvsock_registry::entry_folder::FolderWatch;
use hvsock_registry::store::{RegistrationStore, Watch};

use crate::api::ControlServer;
use crate::containers::{ContainerObserver, UnstartedObserver};
use crate::core::{CoreLink, Loop};
use crate::folders::{self, FolderLock};
use crate::hangs::HangReports;
use crate::retry::Retries;
use crate::sandbox;
use crate::stores::{PartitionStore, ServiceStore};
use crate::upgrade::{HandoverServer, Upgrades};
use crate::watchdog::{ServiceManager, Supervisor};
use crate::{BrokerConfig, Handle, StartError, watch};

/// A broker whose threads have not begun. Nobody can see it.
pub(crate) struct Prepared {
    pub(crate) event_loop: Loop,
    pub(crate) handle: Handle,
    pub(crate) dirs: Dirs,
    /// Where the core's thread waits for the core; before it, so that it does not wait for ever.
    begin: SyncSender<Loop>,
    core: CoreThread,
    observer: UnstartedObserver,
    upgrades: Arc<Upgrades>,
    /// Who is told that the broker is alive.
    manager: Option<ServiceManager>,
}

/// The parts of a running broker, in the order in which they end.
pub(crate) struct Parts {
    /// First, since it calls all others.
    pub(crate) handover: Option<HandoverServer>,
    /// Before the threads that it watches end, which may take a while.
    _supervisor: Option<Supervisor>,
    /// So that no request reaches a core that is stopping.
    pub(crate) control: Option<ControlServer>,
    _core: CoreThread,
    /// Stop watching the stores when dropped.
    watch: Option<Watch>,
    partition_watch: Option<FolderWatch>,
    /// Waits for the ends of containers.
    _observer: Option<ContainerObserver>,
    /// Ends after the core.
    retries: Option<Retries>,
    /// Released last: the lock covers everything else.
    pub(crate) lock: Option<FolderLock>,
    pub(crate) handle: Handle,
    pub(crate) dirs: Dirs,
    pub(crate) upgrades: Arc<Upgrades>,
}

impl Prepared {
    /// Makes a broker with a core that `open` makes.
    pub(crate) fn new(
        config: &mut BrokerConfig,
        store: Box<dyn RegistrationStore>,
        open: impl FnOnce(BrokerConfig) -> Result<(Loop, CoreLink), StartError>,
    ) -> Result<Self, StartError> {
        let unnested = config.partition.check_unnested();
        unnested.map_err(StartError::PartitionName)?;
        let soft = hvsock_sys::limits::descriptors();
        config.soft_descriptors.get_or_insert(soft);
        // Each connection needs at least two descriptors.
        let descriptors = hvsock_sys::limits::raise_descriptors();
        let partitions = PartitionStore::open(&config.dirs, config.cdi.take())?;
        let (dirs, own) = (config.dirs.clone(), config.partition.clone());
        let manager = config.watchdog.service_manager.take();
        let upgrades = Upgrades::new(config.successor.take(), config.on_handover.take());
        let upgrades = Arc::new(upgrades.map_err(StartError::io("create an eventfd"))?);
        let (event_loop, link) = open(config.clone())?;
        let (observer, orders) =
            ContainerObserver::prepare().map_err(StartError::io("create an epoll descriptor"))?;
        let (services, partitions) = (Arc::new(ServiceStore::new(store)), Arc::new(partitions));
        let of_handle = Arc::clone(&upgrades);
        let handle = Handle::new(
            link,
            services,
            partitions,
            orders,
            dirs.clone(),
            own,
            of_handle,
        );
        let (begin, core) = sync_channel::<Loop>(1);
        let thread = std::thread::Builder::new()
            .name("hvsock-core".into())
            .spawn(move || {
                sandbox::enter(sandbox::Kind::Core);
                if let Ok(core) = core.recv() {
                    core.run();
                }
            })
            .map_err(StartError::io("start the core thread"))?;
        handle.check_descriptors(descriptors);
        Ok(Self {
            event_loop,
            core: CoreThread {
                handle: handle.clone(),
                thread: Some(thread),
            },
            handle,
            dirs,
            begin,
            observer,
            upgrades,
            manager,
        })
    }
}

impl Parts {
    /// Starts the threads. What fails is missing, and logged.
    pub(crate) fn run(prepared: Prepared, control: Option<ControlServer>) -> Self {
        let Prepared {
            event_loop,
            handle,
            dirs,
            core,
            begin,
            observer,
            upgrades,
            manager,
        } = prepared;
        // The thread waits for it.
        let _ = begin.send(event_loop);
        let reports = Box::new(HangReports(handle.clone()));
        let supervisor = Supervisor::start(handle.watchdog(), manager, reports);
        let observer = ContainerObserver::start(observer, handle.clone());
        Self {
            handover: None,
            _supervisor: logged("watch the threads", supervisor),
            control,
            _core: core,
            watch: None,
            partition_watch: None,
            _observer: logged("observe containers", observer),
            retries: None,
            lock: None,
            handle,
            dirs,
            upgrades,
        }
    }

    /// Follows changes of files by others.
    ///
    /// # Errors
    ///
    /// If a watch or thread cannot be started.
    pub(crate) fn try_follow(&mut self) -> Result<(), StartError> {
        let handle = &self.handle;
        let (follower, dirs) = (handle.clone(), self.dirs.clone());
        let start = move || -> Result<_, StartError> {
            let services = watch::services(&follower);
            let services = services.map_err(StartError::io("watch registrations"))?;
            let partitions = watch::partitions(&dirs, &follower);
            Ok((
                services,
                partitions.map_err(StartError::io("watch partition files"))?,
            ))
        };
        let watched = sandbox::within(sandbox::Kind::Watch, start);
        let (services, partitions) = watched.map_err(StartError::io("start a thread"))??;
        (self.watch, self.partition_watch) = (Some(services), Some(partitions));
        let (retries, wakeup) =
            Retries::start(handle.clone()).map_err(StartError::io("start a thread"))?;
        handle.post(move |core| core.wake_on_problems(wakeup));
        self.retries = Some(retries);
        Ok(())
    }

    /// As [`try_follow`](Self::try_follow), for a broker that runs in any case.
    pub(crate) fn follow(&mut self) {
        if let Err(error) = self.try_follow() {
            tracing::error!("changes of files are not noticed: {error}");
        }
    }

    /// Takes the lock that another process has passed.
    pub(crate) fn adopt_lock(&mut self, lock: OwnedFd) {
        match folders::adopt_lock(&self.dirs, lock) {
            Ok(lock) => self.lock = Some(lock),
            Err(error) => tracing::error!("{error}"),
        }
    }

    /// Serves those who want to take this broker over.
    pub(crate) fn serve_successors(&mut self) -> std::io::Result<()> {
        let Some(lock) = &self.lock else {
            return Ok(());
        };
        let control = self.control.as_ref();
        let control = control.map(|control| (control.socket(), control.gate()));
        let upgrades = Arc::clone(&self.upgrades);
        let handle = self.handle.clone();
        let server = HandoverServer::start(&self.dirs, handle, upgrades, lock, control)?;
        self.handover = Some(server);
        Ok(())
    }
}

fn logged<T>(what: &str, result: std::io::Result<T>) -> Option<T> {
    result
        .inspect_err(|error| tracing::error!("cannot {what}: {error}"))
        .ok()
}

/// The core thread. Dropping it ends the core.
struct CoreThread {
    handle: Handle,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for CoreThread {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
