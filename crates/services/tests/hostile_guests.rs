//! The host's services with hostile guests.

#![cfg(target_os = "linux")]

use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use futures_util::stream;
use hvsock::{ElementName, Endpoint, Peer, VmId};
use hvsock_broker::{AccessRule, Registration};
use hvsock_services::catalog::{self, HEARTBEAT, NOTIFY, SHUTDOWN};
use hvsock_services::host::heartbeat::{self, GuestCommands};
use hvsock_services::host::shutdown::{Action, begin};
use hvsock_services::host::{notify, time};
use hvsock_services::link::{CallError, ServiceBinding, ServiceServer, Target};
use hvsock_services::wire::heartbeat::heartbeat_client::HeartbeatClient;
use hvsock_services::wire::heartbeat::{Beat, Facts};
use hvsock_services::wire::shutdown::shutdown_server::{Shutdown, ShutdownServer};
use hvsock_services::wire::shutdown::{ShutdownReply, ShutdownRequest};
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};

/// A host with its services, and two containers.
struct World {
    beats: Receiver<(String, Beat)>,
    notices: Receiver<String>,
    runtime: Runtime,
    host: world::World,
}

struct Recorder(Sender<(String, Beat)>);

impl heartbeat::HeartbeatListener for Recorder {
    fn connected(&self, _guest: &Peer, _commands: GuestCommands) {}

    fn beat(&self, guest: &Peer, beat: Beat) {
        let _ = self.0.send((guest.partition().to_owned(), beat));
    }
}

impl World {
    fn new() -> Self {
        let children = AccessRule {
            partitions: Some(vec!["*".to_owned()]),
            ..AccessRule::default()
        };
        // Any child may connect to any service, and listen for it.
        let services = catalog::ALL.iter().map(|service| Registration {
            connect: children.clone(),
            bind: children.clone(),
            ..Registration::new(service.id(), ElementName::new(service.name).unwrap())
        });
        let host = world::World::with(|config| config.built_in = services.collect());
        for name in ["web", "db"] {
            host.container(name, None);
        }
        let (beat_sender, beats) = mpsc::channel();
        let (sender, notices) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let binding = ServiceBinding {
            endpoint: host.host().endpoint(),
            from: VmId::CHILDREN,
        };
        let servers = [
            heartbeat::server(Recorder(beat_sender)),
            notify::server(move |guest, _| sender.send(guest.partition().to_owned()).unwrap()),
            time::server(),
        ];
        for server in servers {
            let mut status = server.status();
            runtime.spawn(server.serve(binding.clone()));
            runtime.block_on(status.first_attempt());
            assert_eq!(status.problem(), None);
        }
        Self {
            beats,
            notices,
            runtime,
            host,
        }
    }

    /// The endpoint of a container.
    fn endpoint(&self, name: &str) -> Endpoint {
        self.host.inside(name).endpoint()
    }

    fn target(&self, name: &str) -> Target {
        Target::new(self.endpoint(name), VmId::PARENT)
    }

    /// Requests a shutdown of the container `web`, whose agent is `agent`. Returns the error.
    fn shut_down(&self, agent: ServiceServer) -> String {
        let mut status = agent.status();
        let binding = ServiceBinding {
            endpoint: self.endpoint("web"),
            from: VmId::PARENT,
        };
        self.runtime.spawn(agent.serve(binding));
        self.runtime.block_on(status.first_attempt());
        assert_eq!(status.problem(), None);
        let web = Target::new(self.host.host().endpoint(), world::partition_ref("web"));
        let call = async { timeout(TIMEOUT, begin(&web, Action::Reboot, false, "")).await };
        let ended = self.runtime.block_on(call).expect("the call ends");
        match ended.unwrap_err() {
            error @ CallError::Status(_) => error.to_string(),
            error => panic!("{error}"),
        }
    }

    /// Lets an honest guest send one beat, and waits until it is received; earlier beats are skipped.
    fn sends_a_beat(&self, name: &str, sequence: u64) {
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
            let commands = HeartbeatClient::new(channel).report(beats).await;
            sleep(TIMEOUT).await;
            drop(commands);
        });
        loop {
            let (from, beat) = self.beats.recv_timeout(TIMEOUT).expect("a beat");
            if from == name && beat.sequence == sequence {
                return;
            }
        }
    }
}

/// Sends these beats. Returns how the call ended.
async fn report(target: &Target, beats: impl IntoIterator<Item = Beat>) -> Result<(), Status> {
    let channel = target.channel(&HEARTBEAT).await.unwrap();
    let beats: Vec<Beat> = beats.into_iter().collect();
    let mut client = HeartbeatClient::new(channel);
    let mut commands = client.report(stream::iter(beats)).await?.into_inner();
    commands.message().await.map(drop)
}

/// The rate limit is five beats a second: eight beats contain seven intervals of 200 ms.
#[test]
fn a_guest_that_beats_too_fast_is_rate_limited() {
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
    for _ in 0..8 {
        world.beats.recv_timeout(TIMEOUT).expect("a beat");
    }
    let elapsed = began.elapsed();
    assert!(elapsed >= 7 * Duration::from_millis(200), "{elapsed:?}");
    world.sends_a_beat("db", 7);
}

#[test]
fn an_oversized_beat_ends_the_call_and_is_not_reported() {
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
        .block_on(async { timeout(TIMEOUT, report(&target, [beat])).await });
    // The result does not matter, only that the call ends.
    drop(ended.expect("the call ends"));
    assert!(world.beats.try_iter().next().is_none());
    world.sends_a_beat("web", 2);
}

#[test]
fn a_newer_call_of_a_guest_ends_its_older_one() {
    let world = World::new();
    let target = world.target("web");
    let (established, wait) = tokio::sync::oneshot::channel();
    let older = world.runtime.spawn(async move {
        let channel = target.channel(&HEARTBEAT).await.unwrap();
        let beats = stream::pending::<Beat>();
        let commands = HeartbeatClient::new(channel).report(beats).await.unwrap();
        established.send(()).unwrap();
        commands.into_inner().message().await
    });
    world.runtime.block_on(async {
        timeout(TIMEOUT, wait).await.unwrap().unwrap();
    });
    assert!(!older.is_finished());
    world.sends_a_beat("web", 1);
    let ended = world
        .runtime
        .block_on(async { timeout(TIMEOUT, older).await });
    assert!(matches!(ended, Ok(Ok(Ok(None) | Err(_)))), "{ended:?}");
}

#[test]
fn a_guest_that_holds_all_its_connections_is_told_and_blocks_no_other() {
    let world = World::new();
    let web = world.target("web");
    let held = world.runtime.block_on(async {
        let mut held = Vec::new();
        for _ in 0..16 {
            held.push(web.stream(&HEARTBEAT).await.unwrap());
        }
        // The connection limit for one partition is 16: one more is refused by its name.
        let refused = timeout(TIMEOUT, report(&web, [])).await.expect("an answer");
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert_eq!(
            refused.message(),
            "the limit of 16 connections from one partition to hvsock heartbeat at once, or of 2048 \
             from all, is reached"
        );
        // One that does not even read the reason is closed.
        let mut silent = web.stream(&HEARTBEAT).await.unwrap();
        let closed = timeout(TIMEOUT, silent.read_to_end(&mut Vec::new())).await;
        drop(closed.expect("it is closed"));
        for (number, stream) in held.iter_mut().enumerate() {
            let nonsense = vec![number as u8; 100_000];
            let _ = timeout(Duration::from_millis(50), stream.write_all(&nonsense)).await;
        }
        held
    });
    world.sends_a_beat("db", 1);
    drop(held);
    // The permits become free with the connections.
    world.sends_a_beat("web", 1);
}

#[test]
fn an_endless_notification_is_dropped_and_others_have_the_right_sender() {
    let world = World::new();
    let (web, db) = (world.target("web"), world.target("db"));
    world.runtime.block_on(async {
        let mut endless = web.stream(&NOTIFY).await.unwrap();
        let flood = async {
            let mut sent = 0;
            while endless.write_all(&[b'X'; 4096]).await.is_ok() {
                sent += 4096;
            }
            sent
        };
        let sent = timeout(TIMEOUT, flood).await.expect("it is closed");
        // At most what fits into the buffers on the way.
        assert!(sent < 8 << 20, "{sent} bytes");
        let mut message = db.stream(&NOTIFY).await.unwrap();
        message
            .write_all(b"READY=1\nX_PARTITION=web\n")
            .await
            .unwrap();
        message.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let end = timeout(TIMEOUT, message.read_to_end(&mut rest)).await;
        assert_eq!(end.expect("it is acknowledged").unwrap(), 0);
    });
    assert_eq!(world.notices.recv_timeout(TIMEOUT).unwrap(), "db");
    assert!(world.notices.try_iter().next().is_none());
}

/// An agent whose reply is too large.
struct LargeReply;

#[tonic::async_trait]
impl Shutdown for LargeReply {
    async fn begin(
        &self,
        _request: Request<ShutdownRequest>,
    ) -> Result<Response<ShutdownReply>, Status> {
        let by = "x".repeat(10 << 20);
        Ok(Response::new(ShutdownReply { by }))
    }
}

#[test]
fn a_silent_agent_times_out_and_an_oversized_reply_is_refused() {
    let silent = ServiceServer::streams(&SHUTDOWN, |stream| async move {
        sleep(TIMEOUT).await;
        drop(stream);
    });
    let refused = World::new().shut_down(silent);
    assert!(refused.contains("the guest did not answer"), "{refused}");
    let large = ServiceServer::calls(&SHUTDOWN, Routes::new(ShutdownServer::new(LargeReply)));
    let refused = World::new().shut_down(large);
    assert!(refused.contains("too large"), "{refused}");
}
