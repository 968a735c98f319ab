//! The integration services that a host offers to its guests, beside its broker in one process:
//! what they hear goes to the broker, which shows it.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hvsock::{Endpoint, Peer, VmId};
use hvsock_address::{PartitionName, PartitionRef};
use hvsock_broker::Handle;
use hvsock_broker::model::{
    ClockKeeper, GuestClock, GuestFacts, GuestNotice, GuestOrder, GuestReport, GuestService, Health,
};
use hvsock_services::host::heartbeat::{self, Orders};
use hvsock_services::host::kvp::{self, Pools};
use hvsock_services::host::notify::{self, Notice};
use hvsock_services::host::time;
use hvsock_services::link::{Offer, Place, Standing, Target};
use hvsock_services::wire::heartbeat::{Beat, Clock, Facts, Keeper, State};
use tokio::sync::oneshot;

/// How long to wait for the first attempt to offer them.
const PATIENCE: Duration = Duration::from_secs(5);

/// The services, offered until this is dropped.
pub struct HostServices {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HostServices {
    /// Offers them through the broker's own `endpoint`, and returns once that is done, or known
    /// not to be possible for now.
    pub fn start(handle: &Handle, endpoint: Endpoint) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let heard = Heard {
            handle: handle.clone(),
            endpoint: endpoint.clone(),
            introduced: Arc::default(),
        };
        let offers = [
            heartbeat::offer(heard),
            notify_offer(handle.clone()),
            time::offer(),
        ];
        let standings: Vec<Standing> = offers.iter().map(Offer::standing).collect();
        let (stop, stopped) = oneshot::channel();
        let (tried, first) = mpsc::channel();
        let thread = thread::Builder::new().name("hvsock-services".into());
        let thread = thread.spawn(move || {
            runtime.block_on(async {
                tokio::spawn(async move {
                    for mut standing in standings {
                        standing.tried().await;
                    }
                    let _ = tried.send(());
                });
                tokio::select! {
                    () = serve(offers, endpoint) => {}
                    _ = stopped => {}
                }
            });
            // What a look-up of a name may still wait for is nothing to wait for here.
            runtime.shutdown_background();
        })?;
        // A broker that has started answers; what keeps it is its own affair, not this one's.
        let _ = first.recv_timeout(PATIENCE);
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

async fn serve(offers: impl IntoIterator<Item = Offer>, endpoint: Endpoint) {
    let place = Place {
        endpoint,
        from: VmId::CHILDREN,
    };
    let mut tasks = tokio::task::JoinSet::new();
    for offer in offers {
        tasks.spawn(offer.serve(place.clone()));
    }
    while tasks.join_next().await.is_some() {}
}

/// Hands what is heard to the broker.
struct Heard {
    handle: Handle,
    endpoint: Endpoint,
    /// Those who are being told who they are: a guest that comes again and again costs no more.
    introduced: Arc<Mutex<HashSet<String>>>,
}

/// The partition that a peer is in. The broker made its name, so it is one.
fn partition(guest: &Peer) -> Option<PartitionRef> {
    let name = PartitionName::new(guest.partition()).ok()?;
    Some(PartitionRef::Name(name))
}

impl heartbeat::Listener for Heard {
    fn attend(&self, guest: &Peer, orders: Orders) {
        if let Some(partition) = partition(guest) {
            self.handle
                .attend_guest(&partition, move |order| match order {
                    GuestOrder::SyncClock => orders.sync_clock(),
                });
            let (endpoint, guest) = (self.endpoint.clone(), guest.partition().to_owned());
            let under_way = Arc::clone(&self.introduced);
            if locked(&under_way).insert(guest.clone()) {
                tokio::spawn(async move {
                    introduce(endpoint, partition, guest.clone()).await;
                    locked(&under_way).remove(&guest);
                });
            }
        }
    }

    fn beat(&self, guest: &Peer, beat: Beat) {
        if let Some(partition) = partition(guest) {
            self.handle.guest_beat(&partition, report(beat));
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells a guest whose agent has come who it is and where. Its services come one after the other,
/// so this waits for them a little; without the one for pairs nobody is told.
async fn introduce(endpoint: Endpoint, partition: PartitionRef, guest: String) {
    let target = Target::new(endpoint.clone(), partition);
    let id = tokio::task::spawn_blocking({
        let guest = guest.clone();
        move || endpoint.vm_id(&PartitionName::new(guest).ok()?).ok()
    });
    let Ok(Some(id)) = id.await else {
        return;
    };
    let facts = kvp::facts_of_host(&guest, &id.to_string());
    let tell = async || {
        let mut pools = Pools::connect(&target).await?;
        pools.set(kvp::Pool::AutoExternal, facts.clone()).await
    };
    for wait in [0, 1, 2, 4, 8] {
        tokio::time::sleep(Duration::from_secs(wait)).await;
        match tell().await {
            Ok(()) => break,
            Err(error) => tracing::debug!("{guest} is not told of its host: {error}"),
        }
    }
    // An agent may come before all disks are mounted, and have kept it in what those cover.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let _ = tell().await;
}

/// Further variables of a guest's service manager that are kept.
const MOST_VARIABLES: usize = 32;

fn notify_offer(handle: Handle) -> Offer {
    notify::offer(move |guest, notice| {
        if let Some(partition) = partition(guest) {
            handle.guest_notice(&partition, |said| add(said, notice));
        }
    })
}

/// Takes a message into what was said before.
fn add(said: &mut GuestNotice, notice: Notice) {
    said.ready |= notice.ready;
    said.stopping |= notice.stopping;
    said.status = notice.status.or(said.status.take());
    said.errno = notice.errno.or(said.errno);
    said.exit_status = notice.exit_status.or(said.exit_status);
    for (name, value) in notice.more {
        if said.more.len() < MOST_VARIABLES || said.more.contains_key(&name) {
            said.more.insert(name, value);
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
    fn messages_add_up_and_variables_have_a_limit() {
        let mut said = GuestNotice::default();
        add(&mut said, Notice::parse(b"STATUS=a\nX_A=1"));
        add(&mut said, Notice::parse(b"READY=1\nX_A=2"));
        for number in 0..100 {
            add(&mut said, Notice::parse(format!("X_{number}=1").as_bytes()));
        }
        assert!(said.ready);
        assert_eq!(said.status.as_deref(), Some("a"));
        assert_eq!(said.more["X_A"], "2");
        assert_eq!(said.more.len(), MOST_VARIABLES);
    }
}
