//! The integration services that a host offers to its guests, in the broker's process. They pass
//! what guests report to the broker, which shows it.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hvsock::{Endpoint, Peer, VmId};
use hvsock_address::{PartitionName, PartitionRef};
use hvsock_broker::model::{
    ClockKeeper, GuestClock, GuestCommand, GuestFacts, GuestNotice, GuestReport, GuestService,
    Health,
};
use hvsock_broker::{Handle, sandbox};
use hvsock_services::host::heartbeat::{self, GuestCommands};
use hvsock_services::host::kvp::{self, Pools};
use hvsock_services::host::notify::{self, Notice};
use hvsock_services::host::time;
use hvsock_services::link::{ServiceBinding, ServiceServer, ServiceStatus, Target};
use hvsock_services::wire::heartbeat::{Beat, Clock, Facts, Keeper, State};
use hvsock_sys::sync::lock;
use tokio::sync::oneshot;

/// The longest wait for the first attempt to offer the services.
const START_TIMEOUT: Duration = Duration::from_secs(5);

/// The services, offered until this is dropped.
pub struct HostServices {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HostServices {
    /// Offers the services through the broker's `endpoint`. Returns after the first attempt, which may
    /// have failed: the services retry in the background.
    pub fn start(handle: &Handle, endpoint: Endpoint) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let receiver = HeartbeatReceiver {
            handle: handle.clone(),
            endpoint: endpoint.clone(),
            introduced: Arc::default(),
        };
        let servers = [
            heartbeat::server(receiver),
            notify_server(handle.clone()),
            time::server(),
        ];
        let statuses: Vec<ServiceStatus> = servers.iter().map(ServiceServer::status).collect();
        let (stop, stopped) = oneshot::channel();
        let (tried, first) = mpsc::channel();
        let thread = thread::Builder::new().name("hvsock-services".into());
        let thread = thread.spawn(move || {
            sandbox::enter(sandbox::Kind::Services);
            runtime.block_on(async {
                tokio::spawn(async move {
                    for mut status in statuses {
                        status.first_attempt().await;
                    }
                    let _ = tried.send(());
                });
                tokio::select! {
                    () = serve(servers, endpoint) => {}
                    _ = stopped => {}
                }
            });
            // A pending name lookup must not delay the shutdown.
            runtime.shutdown_background();
        })?;
        // The broker runs. A slow first attempt does not stop it.
        let _ = first.recv_timeout(START_TIMEOUT);
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for HostServices {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(servers: impl IntoIterator<Item = ServiceServer>, endpoint: Endpoint) {
    let binding = ServiceBinding {
        endpoint,
        from: VmId::CHILDREN,
    };
    let mut tasks = tokio::task::JoinSet::new();
    for server in servers {
        tasks.spawn(server.serve(binding.clone()));
    }
    while tasks.join_next().await.is_some() {}
}

/// Passes heartbeats to the broker.
struct HeartbeatReceiver {
    handle: Handle,
    endpoint: Endpoint,
    /// The guests that [`introduce`] runs for, so that a guest that reconnects often starts no more.
    introduced: Arc<Mutex<HashSet<String>>>,
}

/// The partition of a peer. Its name comes from the broker, so it is valid.
fn partition(guest: &Peer) -> Option<PartitionRef> {
    let name = PartitionName::new(guest.partition()).ok()?;
    Some(PartitionRef::Name(name))
}

impl heartbeat::HeartbeatListener for HeartbeatReceiver {
    fn connected(&self, guest: &Peer, commands: GuestCommands) {
        if let Some(partition) = partition(guest) {
            self.handle
                .on_guest_command(&partition, move |command| match command {
                    GuestCommand::SyncClock => commands.sync_clock(),
                });
            let (endpoint, guest) = (self.endpoint.clone(), guest.partition().to_owned());
            let introduced = Arc::clone(&self.introduced);
            if lock(&introduced).insert(guest.clone()) {
                tokio::spawn(async move {
                    introduce(endpoint, partition, guest.clone()).await;
                    lock(&introduced).remove(&guest);
                });
            }
        }
    }

    fn beat(&self, guest: &Peer, beat: Beat) {
        if let Some(partition) = partition(guest) {
            self.handle.guest_heartbeat(&partition, report(beat));
        }
    }
}

/// Writes a guest's name, its GUID and facts of the host into the guest's key-value pairs after its
/// agent has connected. The agent starts its services one by one, so this retries for a while. A
/// guest without the service `kvp` gets no facts.
async fn introduce(endpoint: Endpoint, partition: PartitionRef, guest: String) {
    let target = Target::new(endpoint.clone(), partition);
    let target = target.describe("kvp_set", "facts of the host");
    let id = tokio::task::spawn_blocking({
        let guest = guest.clone();
        move || endpoint.vm_id(&PartitionName::new(guest).ok()?).ok()
    });
    let Ok(Some(id)) = id.await else {
        return;
    };
    let facts = kvp::facts_of_host(&guest, &id.to_string());
    let send = async || {
        let mut pools = Pools::connect(&target).await?;
        pools.set(kvp::Pool::AutoExternal, facts.clone()).await
    };
    for wait in [0, 1, 2, 4, 8] {
        tokio::time::sleep(Duration::from_secs(wait)).await;
        match send().await {
            Ok(()) => break,
            Err(error) => tracing::debug!("cannot send the facts of the host to {guest}: {error}"),
        }
    }
    // An agent may start before all disks are mounted, and store the facts below a mount point.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let _ = send().await;
}

/// The most additional variables of a guest's service manager that are stored.
const MAX_VARIABLES: usize = 32;

fn notify_server(handle: Handle) -> ServiceServer {
    notify::server(move |guest, notice| {
        if let Some(partition) = partition(guest) {
            handle.guest_notice(&partition, |stored| merge(stored, notice));
        }
    })
}

/// Merges a message into the guest's earlier reports.
fn merge(stored: &mut GuestNotice, notice: Notice) {
    stored.ready |= notice.ready;
    stored.stopping |= notice.stopping;
    stored.status = notice.status.or(stored.status.take());
    stored.errno = notice.errno.or(stored.errno);
    stored.exit_status = notice.exit_status.or(stored.exit_status);
    for (name, value) in notice.more {
        if stored.more.len() < MAX_VARIABLES || stored.more.contains_key(&name) {
            stored.more.insert(name, value);
        }
    }
}

fn report(beat: Beat) -> GuestReport {
    let load = [beat.load_1_milli, beat.load_5_milli, beat.load_15_milli];
    GuestReport {
        health: match beat.state() {
            State::Unspecified => Health::Unknown,
            State::Starting => Health::Starting,
            State::Ok => Health::Ok,
            State::Critical => Health::Critical,
            State::Stopping => Health::Stopping,
        },
        manager: beat.manager,
        beats: beat.sequence,
        uptime_seconds: beat.uptime_ms as f64 / 1e3,
        load: load.map(|load| f64::from(load) / 1e3),
        memory_total_bytes: beat.memory_total,
        memory_available_bytes: beat.memory_available,
        facts: beat.facts.map(facts).unwrap_or_default(),
        clock: beat.clock.as_ref().map(clock),
    }
}

fn facts(facts: Facts) -> GuestFacts {
    let services = facts.services.into_iter().map(|service| GuestService {
        port: service.port,
        offered: service.offered,
        problem: Some(service.problem).filter(|problem| !problem.is_empty()),
    });
    GuestFacts {
        boot_id: facts.boot_id,
        agent: facts.agent,
        os: facts.os,
        kernel: facts.kernel,
        hostname: facts.hostname,
        addresses: facts.addresses,
        services: services.collect(),
    }
}

fn clock(clock: &Clock) -> GuestClock {
    GuestClock {
        offset_seconds: clock.offset_ns as f64 / 1e9,
        error_seconds: clock.error_ns as f64 / 1e9,
        age_seconds: clock.age_ms as f64 / 1e3,
        keeper: match clock.keeper() {
            Keeper::Unspecified => ClockKeeper::Unknown,
            Keeper::Agent => ClockKeeper::Agent,
            Keeper::Other => ClockKeeper::Other,
            Keeper::Host => ClockKeeper::Host,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_merged_and_variables_are_limited() {
        let mut stored = GuestNotice::default();
        merge(&mut stored, Notice::parse(b"STATUS=a\nX_A=1"));
        merge(&mut stored, Notice::parse(b"READY=1\nX_A=2"));
        for number in 0..100 {
            merge(
                &mut stored,
                Notice::parse(format!("X_{number}=1").as_bytes()),
            );
        }
        assert!(stored.ready);
        assert_eq!(stored.status.as_deref(), Some("a"));
        assert_eq!(stored.more["X_A"], "2");
        assert_eq!(stored.more.len(), MAX_VARIABLES);
    }
}
