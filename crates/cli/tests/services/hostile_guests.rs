//! Hostile guests in place of an agent: a command on the host ends with a clear error, and uses no more
//! memory than with an honest guest.

use std::fs;
use std::future::Future;
use std::io::{BufRead as _, BufReader};
use std::pin::Pin;
use std::process::Stdio;
use std::thread;

use futures_util::{Stream, stream};
use hvsock::{Endpoint, VmId};
use hvsock_services::catalog::{FREEZE, Integration, KVP};
use hvsock_services::link::{ServiceBinding, ServiceServer};
use hvsock_services::wire::freeze::freeze_server::{Freeze, FreezeServer};
use hvsock_services::wire::freeze::{
    Filesystem, FreezeReply, FreezeRequest, ThawReply, ThawRequest,
};
use hvsock_services::wire::kvp::kvp_server::{Kvp, KvpServer};
use hvsock_services::wire::kvp::{
    GetReply, GetRequest, ListReply, ListRequest, Pair, SetReply, SetRequest, UnsetReply,
    UnsetRequest, WatchEvent, WatchRequest, watch_event::Kind,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::util::{Running, World, eventually};

/// Adds a container in which this process offers a service, until the test's process ends.
pub fn offer(world: &World, name: &str, server: ServiceServer) {
    let endpoint = Endpoint::at(world.container(name));
    let service = server.service();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let from = VmId::PARENT;
        runtime.block_on(server.serve(ServiceBinding { endpoint, from }));
    });
    wait_until_offered(world, name, service);
}

fn wait_until_offered(world: &World, name: &str, service: &Integration) {
    eventually("the hostile guest listens", || {
        let why = world.run(["why", name, service.name]);
        why.stdout.contains("would succeed")
    });
}

fn pair(key: String, value: String) -> Pair {
    Pair { key, value }
}

/// A hostile guest that uses the gRPC interface but sends invalid values.
struct HostileGuest;

type RpcResult<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Kvp for HostileGuest {
    async fn get(&self, request: Request<GetRequest>) -> RpcResult<GetReply> {
        let value = match request.into_inner().key.as_str() {
            "long" => "v".repeat(2048),
            "huge" => "v".repeat(5 << 20),
            "escape" => return Err(Status::internal("\x1b]0;owned\x07")),
            _ => "\0".to_owned(),
        };
        Ok(Response::new(GetReply { value }))
    }

    async fn list(&self, request: Request<ListRequest>) -> RpcResult<ListReply> {
        let pairs = match request.into_inner().pool {
            0 => (0..1025)
                .map(|key| pair(key.to_string(), String::new()))
                .collect(),
            1 => vec![pair(String::new(), "no key".to_owned())],
            2 => vec![pair("\x1b[2J".to_owned(), "\r\x1b[1A".to_owned())],
            _ => vec![pair("k".to_owned(), "v".repeat(5 << 20))],
        };
        Ok(Response::new(ListReply { pairs }))
    }

    async fn set(&self, _: Request<SetRequest>) -> RpcResult<SetReply> {
        Err(Status::new(tonic::Code::Ok, ""))
    }

    async fn unset(&self, _: Request<UnsetRequest>) -> RpcResult<UnsetReply> {
        let removed = u32::MAX;
        Ok(Response::new(UnsetReply { removed }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchEvent, Status>> + Send>>;

    /// Sends events without an end, each with a value of the maximum length.
    async fn watch(&self, _: Request<WatchRequest>) -> RpcResult<Self::WatchStream> {
        let event = WatchEvent {
            kind: Kind::Set.into(),
            pool: 0,
            pair: Some(pair("k".to_owned(), "v".repeat(2047))),
        };
        Ok(Response::new(Box::pin(stream::repeat_with(move || {
            Ok(event.clone())
        }))))
    }
}

#[tonic::async_trait]
impl Freeze for HostileGuest {
    async fn freeze(&self, request: Request<FreezeRequest>) -> RpcResult<FreezeReply> {
        let frozen = Filesystem {
            mount: "/\x1b[2J".to_owned(),
            ..Filesystem::default()
        };
        let honest = FreezeReply {
            id: 1,
            frozen: vec![frozen.clone()],
            skipped: Vec::new(),
        };
        let mounts = request.into_inner().mounts;
        Ok(Response::new(match mounts.first().map(String::as_str) {
            Some("/none") => FreezeReply {
                frozen: Vec::new(),
                ..honest
            },
            Some("/many") => FreezeReply {
                frozen: vec![frozen; 257],
                ..honest
            },
            Some("/nameless") => FreezeReply { id: 0, ..honest },
            _ => honest,
        }))
    }

    async fn thaw(&self, _: Request<ThawRequest>) -> RpcResult<ThawReply> {
        Ok(Response::new(ThawReply {
            outcome: 99,
            frozen_ms: u64::MAX,
            failures: vec!["x".to_owned(); 10_000],
        }))
    }
}

#[test]
fn pairs_beyond_the_limits_are_refused() {
    let world = World::new();
    offer(
        &world,
        "hostile",
        ServiceServer::calls(&KVP, Routes::new(KvpServer::new(HostileGuest))),
    );
    let list = |pool: &str| world.run(["kvp", "list", "hostile", "--pool", pool]);
    for (pool, why) in [
        ("external", "1025 pairs"),
        ("guest", "a key must not be empty"),
    ] {
        let refused = list(pool).failed();
        assert!(
            refused.contains("is invalid") && refused.contains(why),
            "{refused}"
        );
    }
    let huge = list("auto-external").failed();
    assert!(huge.contains("too large"), "{huge}");
    let listed = list("auto");
    assert_eq!(listed.code, Some(0));
    assert!(
        !listed.stdout.contains(['\x1b', '\r']),
        "{:?}",
        listed.stdout
    );

    let get = |key: &str| world.run(["kvp", "get", "hostile", key]).failed();
    assert!(get("long").contains("is invalid"));
    assert!(get("huge").contains("too large"));
    assert!(get("zero").contains("is invalid"));
    let escape = get("escape");
    assert!(
        escape.contains("]0;owned") && !escape.contains(['\x1b', '\x07']),
        "{escape:?}"
    );
    // The status is OK, but there is no reply message.
    world.run(["kvp", "set", "hostile", "a", "b"]).failed();
    assert_eq!(world.run(["kvp", "unset", "hostile", "a"]).code, Some(0));
}

#[test]
fn endless_pairs_use_no_memory() {
    let world = World::new();
    offer(
        &world,
        "hostile",
        ServiceServer::calls(&KVP, Routes::new(KvpServer::new(HostileGuest))),
    );
    let mut command = world.command(["kvp", "watch", "hostile"]);
    let mut watch = Running::start(command.stdout(Stdio::piped()));
    let lines = BufReader::new(watch.child.stdout.take().unwrap()).lines();
    // 60 MB.
    assert!(
        lines
            .take(30_000)
            .all(|line| line.unwrap().starts_with("set external k vv"))
    );
    let status = fs::read_to_string(format!("/proc/{}/status", watch.child.id())).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("peak resident size {kib} KiB");
    assert!(kib < 48 * 1024, "{kib} KiB");
}

#[test]
fn an_invalid_freeze_reply_is_refused() {
    let world = World::new();
    offer(
        &world,
        "hostile",
        ServiceServer::calls(&FREEZE, Routes::new(FreezeServer::new(HostileGuest))),
    );
    for mount in ["/none", "/many", "/nameless"] {
        let refused = world
            .run(["vm", "freeze", "hostile", "--mount", mount])
            .failed();
        assert!(refused.contains("is invalid"), "{refused}");
    }
    let frozen = world.run(["vm", "freeze", "hostile"]);
    assert!(!frozen.stdout.contains('\x1b'), "{:?}", frozen.stdout);
    let thawed = world.run(["vm", "thaw", "hostile"]).failed();
    assert!(thawed.contains("reported no outcome"), "{thawed}");
    // The command has run, but the outcome of the freeze is unknown.
    let unsure = world
        .run(["vm", "freeze", "hostile", "--", "true"])
        .failed();
    assert!(unsure.contains("reported no outcome"), "{unsure}");
}

/// A gRPC service that answers a unary call with this number of messages, and no status.
#[derive(Clone)]
struct ManyReplies {
    count: usize,
}

impl NamedService for ManyReplies {
    const NAME: &'static str = "hvsock.kvp.v1.Kvp";
}

impl Service<http::Request<Body>> for ManyReplies {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        // Uncompressed, 3 bytes: the field 1 is "x".
        let message = bytes::Bytes::from_static(&[0, 0, 0, 0, 3, 0x0a, 1, b'x']);
        let frame = move || Ok::<_, Status>(http_body::Frame::data(message.clone()));
        let frames = futures_util::StreamExt::take(stream::repeat_with(frame), self.count);
        let body = Body::new(http_body_util::StreamBody::new(frames));
        let response = http::Response::builder().header("content-type", "application/grpc");
        let response = response.body(body).unwrap();
        Box::pin(async { Ok(response) })
    }
}

#[test]
fn calls_to_silent_or_endless_guests_fail() {
    let world = World::new();
    let silent = ServiceServer::streams(&KVP, |mut stream| async move {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    offer(&world, "silent", silent);
    let replies = |count| ServiceServer::calls(&KVP, Routes::new(ManyReplies { count }));
    offer(&world, "endless", replies(usize::MAX));
    offer(&world, "twice", replies(2));
    let noise = ServiceServer::streams(&KVP, |mut stream| async move {
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
    });
    offer(&world, "noise", noise);
    offer(&world, "short", ServiceServer::streams(&KVP, |_| async {}));

    thread::scope(|scope| {
        for (name, why) in [
            ("silent", "within 15 s"),
            ("endless", ""),
            ("noise", ""),
            ("short", ""),
        ] {
            let world = &world;
            scope.spawn(move || {
                let refused = world.run(["kvp", "get", name, "a"]).failed();
                assert!(refused.contains(why), "{name}: {refused}");
            });
        }
    });
    // Messages without a status at the end are no valid reply.
    world.run(["kvp", "get", "twice", "a"]).failed();
}
