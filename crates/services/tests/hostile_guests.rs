//! What a host offers to guests that mean it no good.

#![cfg(target_os = "linux")]

use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use futures_util::stream;
use hvsock::{ElementName, Endpoint, PartitionRef, Peer, VmId};
use hvsock_broker::model::NewContainer;
use hvsock_broker::{AccessRule, Broker, BrokerConfig, Registration};
use hvsock_endpoint::Dirs;
use hvsock_services::catalog::{self, HEARTBEAT, NOTIFY, SHUTDOWN};
use hvsock_services::host::heartbeat::{self, Orders};
use hvsock_services::host::shutdown::{Action, begin};
use hvsock_services::host::{notify, time};
use hvsock_services::link::{CallError, Offer, Place, Target};
use hvsock_services::wire::heartbeat::heartbeat_client::HeartbeatClient;
use hvsock_services::wire::heartbeat::{Beat, Facts};
use hvsock_services::wire::shutdown::shutdown_server::{Shutdown, ShutdownServer};
use hvsock_services::wire::shutdown::{ShutdownReply, ShutdownRequest};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A host with its services, and two containers.
struct World {
    heard: Receiver<(String, Beat)>,
    notices: Receiver<String>,
    runtime: Runtime,
    folder: TempDir,
    _broker: Broker,
}

struct Heard(Sender<(String, Beat)>);

impl heartbeat::Listener for Heard {
    fn attend(&self, _guest: &Peer, _orders: Orders) {}

    fn beat(&self, guest: &Peer, beat: Beat) {
        let _ = self.0.send((guest.partition().to_owned(), beat));
    }
}

impl World {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("hvhost").tempdir().unwrap();
        let dirs = Dirs {
            run: folder.path().to_owned(),
            config: folder.path().to_owned(),
        };
        let mut config = BrokerConfig::new(dirs);
        let children = AccessRule {
            partitions: Some(vec!["*".to_owned()]),
            ..AccessRule::default()
        };
        // Either end of a service may be a child here.
        config.built_in = catalog::ALL
            .iter()
            .map(|service| Registration {
                connect: children.clone(),
                bind: children.clone(),
                ..Registration::new(service.id(), ElementName::new(service.name).unwrap())
            })
            .collect();
        let broker = Broker::start(config).unwrap();
        for name in ["web", "db"] {
            let container = NewContainer {
                name: name.parse().unwrap(),
                id: None,
                groups: Vec::new(),
            };
            broker.handle().add_container(container).unwrap();
        }
        let (beats, heard) = mpsc::channel();
        let (said, notices) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let place = Place {
            endpoint: Endpoint::in_dir(folder.path()),
            from: VmId::CHILDREN,
        };
        let offers = [
            heartbeat::offer(Heard(beats)),
            notify::offer(move |guest, _| said.send(guest.partition().to_owned()).unwrap()),
            time::offer(),
        ];
        for offer in offers {
            let mut standing = offer.standing();
            runtime.spawn(offer.serve(place.clone()));
            runtime.block_on(standing.tried());
            assert_eq!(standing.problem(), None);
        }
        Self {
            heard,
            notices,
            runtime,
            folder,
            _broker: broker,
        }
    }

    /// The way that a container has to its host.
    fn endpoint(&self, name: &str) -> Endpoint {
        Endpoint::in_dir(self.folder.path().join("containers").join(name))
    }

    fn target(&self, name: &str) -> Target {
        Target::new(self.endpoint(name), VmId::PARENT)
    }

    /// Asks the container `web` to go down, in which this is the agent; how that was refused.
    fn shut_down(&self, agent: Offer) -> String {
        let mut standing = agent.standing();
        let place = Place {
            endpoint: self.endpoint("web"),
            from: VmId::PARENT,
        };
        self.runtime.spawn(agent.serve(place));
        self.runtime.block_on(standing.tried());
        assert_eq!(standing.problem(), None);
        let name: PartitionRef = "web".parse().unwrap();
        let web = Target::new(Endpoint::in_dir(self.folder.path()), name);
        let asked = async { timeout(PATIENCE, begin(&web, Action::Reboot, false, "")).await };
        let asked = self.runtime.block_on(asked).expect("it ends");
        match asked.unwrap_err() {
            error @ CallError::Status(_) => error.to_string(),
            error => panic!("{error}"),
        }
    }

    /// Has a well-meant guest beat once, and waits until that is heard; what came before is skipped.
    fn is_heard(&self, name: &str, sequence: u64) {
        let target = self.target(name);
        let _call = self.runtime.spawn(async move {
            let channel = target.channel(&HEARTBEAT).await.unwrap();
            let beat = Beat {
                sequence,
                ..Beat::default()
            };
            let beats = stream::unfold(Some(beat), async |beat| match beat {
                Some(beat) => Some((beat, None)),
                None => std::future::pending().await,
            });
            let orders = HeartbeatClient::new(channel).report(beats).await;
            sleep(PATIENCE).await;
            drop(orders);
        });
        loop {
            let (from, beat) = self.heard.recv_timeout(PATIENCE).expect("it is heard");
            if from == name && beat.sequence == sequence {
                return;
            }
        }
    }
}

/// Reports these beats, and returns how the call ended.
async fn report(target: &Target, beats: impl IntoIterator<Item = Beat>) -> Result<(), Status> {
    let channel = target.channel(&HEARTBEAT).await.unwrap();
    let beats: Vec<Beat> = beats.into_iter().collect();
    let mut client = HeartbeatClient::new(channel);
    let mut orders = client.report(stream::iter(beats)).await?.into_inner();
    orders.message().await.map(drop)
}

#[test]
fn a_guest_that_beats_like_mad_is_made_to_wait() {
    let world = World::new();
    let target = world.target("web");
    let began = Instant::now();
    let _flood = world.runtime.spawn(async move {
        let beats = (1..=100_000).map(|sequence| Beat {
            sequence,
            ..Beat::default()
        });
        let _ = report(&target, beats).await;
    });
    std::thread::sleep(Duration::from_secs(2));
    let heard = world.heard.try_iter().count() as f64;
    let most = began.elapsed().as_secs_f64() * 5.0 + 2.0;
    assert!(
        heard >= 1.0 && heard <= most,
        "{heard} in {:?}",
        began.elapsed()
    );
    world.is_heard("db", 7);
}

#[test]
fn a_beat_that_is_too_large_ends_the_call_and_is_not_heard() {
    let world = World::new();
    let facts = Facts {
        addresses: vec!["10.0.0.1".to_owned(); 10_000],
        ..Facts::default()
    };
    let beat = Beat {
        sequence: 1,
        facts: Some(facts),
        ..Beat::default()
    };
    let target = world.target("web");
    let ended = world
        .runtime
        .block_on(async { timeout(PATIENCE, report(&target, [beat])).await });
    // However the call ends, it ends.
    drop(ended.expect("it ends"));
    assert!(world.heard.try_iter().next().is_none());
    world.is_heard("web", 2);
}

#[test]
fn the_newer_call_of_a_guest_ends_its_older_one() {
    let world = World::new();
    let target = world.target("web");
    let older = world.runtime.spawn(async move {
        let channel = target.channel(&HEARTBEAT).await.unwrap();
        let beats = stream::pending::<Beat>();
        let orders = HeartbeatClient::new(channel).report(beats).await.unwrap();
        orders.into_inner().message().await
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(!older.is_finished());
    world.is_heard("web", 1);
    let ended = world
        .runtime
        .block_on(async { timeout(PATIENCE, older).await });
    assert!(matches!(ended, Ok(Ok(Ok(None) | Err(_)))), "{ended:?}");
}

#[test]
fn one_that_talks_nonsense_and_holds_connections_keeps_no_other_from_being_heard() {
    let world = World::new();
    let web = world.target("web");
    let held = world.runtime.block_on(async {
        let mut held = Vec::new();
        for _ in 0..16 {
            held.push(web.stream(&HEARTBEAT).await.unwrap());
        }
        // One too many: it is closed, and not for what it says.
        let mut more = web.stream(&HEARTBEAT).await.unwrap();
        let mut bytes = Vec::new();
        let closed = timeout(PATIENCE, more.read_to_end(&mut bytes)).await;
        drop(closed.expect("it is closed"));
        assert!(bytes.is_empty());
        for (number, stream) in held.iter_mut().enumerate() {
            let nonsense = vec![number as u8; 100_000];
            let _ = timeout(Duration::from_millis(50), stream.write_all(&nonsense)).await;
        }
        held
    });
    world.is_heard("db", 1);
    drop(held);
    // Places come free with the connections.
    world.is_heard("web", 1);
}

#[test]
fn a_notification_without_an_end_is_given_up_and_one_from_each_is_its_own() {
    let world = World::new();
    let (web, db) = (world.target("web"), world.target("db"));
    world.runtime.block_on(async {
        let mut endless = web.stream(&NOTIFY).await.unwrap();
        let flood = async {
            let mut taken = 0;
            while endless.write_all(&[b'X'; 4096]).await.is_ok() {
                taken += 4096;
            }
            taken
        };
        let taken = timeout(PATIENCE, flood).await.expect("it is closed");
        // No more than there is room for on the way.
        assert!(taken < 8 << 20, "{taken} bytes");
        let mut said = db.stream(&NOTIFY).await.unwrap();
        said.write_all(b"READY=1\nX_PARTITION=web\n").await.unwrap();
        said.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let end = timeout(PATIENCE, said.read_to_end(&mut rest)).await;
        assert_eq!(end.expect("it is heard out").unwrap(), 0);
    });
    assert_eq!(world.notices.recv_timeout(PATIENCE).unwrap(), "db");
    assert!(world.notices.try_iter().next().is_none());
}

/// An agent that has much to say.
struct Windbag;

#[tonic::async_trait]
impl Shutdown for Windbag {
    async fn begin(
        &self,
        _request: Request<ShutdownRequest>,
    ) -> Result<Response<ShutdownReply>, Status> {
        let by = "x".repeat(10 << 20);
        Ok(Response::new(ShutdownReply { by }))
    }
}

#[test]
fn an_agent_that_never_answers_is_given_up_and_one_that_says_too_much_is_not_heard_out() {
    let silent = Offer::streams(&SHUTDOWN, |stream| async move {
        sleep(PATIENCE).await;
        drop(stream);
    });
    let refused = World::new().shut_down(silent);
    assert!(refused.contains("the guest does not answer"), "{refused}");
    let windbag = Offer::calls(&SHUTDOWN, Routes::new(ShutdownServer::new(Windbag)));
    let refused = World::new().shut_down(windbag);
    assert!(refused.contains("too large"), "{refused}");
}
