//! A core goes through its document as JSON, and an operator sees in the other one what was in this one.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use hvsock_address::{PartitionName, ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::{
    BrokerMessage, ClientMessage, Connect, Dirs, Flags, IdOrName, Listen, MAX_MESSAGE,
    NamedAddress, Register, Transports,
};
use hvsock_fabric::{PartitionKind, PartitionSpec, PartitionState, Refusal};
use hvsock_registry::Registration;
use hvsock_registry::store::{Entry, Loaded, Origin};
use hvsock_sys::pidfd::Process;
use hvsock_sys::{message, seqpacket};
use hvsock_testkit::json_edits::Edit;
use mio::{Events, Poll};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::container_states::ToBind;
use super::endpoints::EndpointKind;
use super::hand_over::CoreDocument;
use super::reports::{ReportQueue, ThreadReport};
use super::sessions::{self, TextEntry};
use super::state::Core;
use super::tokens::{Source, WAKE};
use crate::BrokerConfig;
use crate::budget::Owner;
use crate::handover::HandoverError;
use crate::handover::testing::{Exported, kept};
use crate::loop_waker::LoopWaker;
use crate::model::{GuestReport, Health};
use crate::watchdog::Watchdog;

const STEP: Duration = Duration::from_secs(10);

/// A core without its thread.
struct World {
    core: Core,
    poll: Poll,
    _reports: Receiver<ThreadReport>,
    config: BrokerConfig,
}

/// A document with what it refers to.
struct Taken {
    json: Value,
    exported: Exported,
}

fn config(folder: &Path) -> BrokerConfig {
    let dirs = Dirs {
        run: folder.join("run"),
        config: folder.join("config"),
    };
    drop(crate::folders::lock(&dirs).unwrap());
    BrokerConfig {
        data_threads: 1,
        ..BrokerConfig::new(dirs)
    }
}

impl World {
    /// A core that serves nobody.
    fn prepared(config: BrokerConfig) -> Self {
        let poll = Poll::new().unwrap();
        let waker = Arc::new(LoopWaker::new(poll.registry(), WAKE).unwrap());
        let (queue, reports) = ReportQueue::new(waker, Watchdog::new(&config.watchdog));
        let registry = poll.registry().try_clone().unwrap();
        let core = Core::new(config.clone(), Loaded::default(), registry, queue, false);
        Self {
            core: core.unwrap(),
            poll,
            _reports: reports,
            config,
        }
    }

    /// One with its own endpoint.
    fn open(folder: &Path) -> Self {
        let mut world = Self::prepared(config(folder));
        let core = &mut world.core;
        let own = core.fabric.root();
        for (kind, path) in [
            (EndpointKind::Endpoint, core.dirs.endpoint()),
            (EndpointKind::Text, core.dirs.text()),
        ] {
            core.endpoints.open(kind, own, path).unwrap();
        }
        world
    }

    /// Handles what has arrived.
    fn turn(&mut self) {
        let mut events = Events::with_capacity(64);
        self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        for event in &events {
            match Source::from(event.token()) {
                Source::Endpoint(index) => self.core.endpoints.mark(index),
                Source::Session(index) => self.core.session_event(index),
                Source::Text(index) => self.core.text_listener_event(index),
                Source::Attaching(index) => self.core.attaching_ready(index),
                Source::Connection => self.core.data_threads.handle_event(event),
                Source::Uplink(_) | Source::Waker => {}
            }
        }
        self.core.accept_clients();
        self.core.resume_sessions();
        self.core.data_threads.run_turns();
        while let Some(report) = self.core.data_threads.next_report() {
            self.core.handle_report(report);
        }
    }

    fn take(&self) -> Taken {
        let (document, exported) =
            kept(|exports| self.core.hand_over_state(exports, Instant::now()));
        let json = serde_json::to_value(document.unwrap()).unwrap();
        Taken { json, exported }
    }

    fn resume(config: &BrokerConfig, taken: Taken) -> Result<Self, HandoverError> {
        let mut world = Self::prepared(config.clone());
        let text = serde_json::to_string(&taken.json).unwrap();
        let document: CoreDocument = serde_json::from_str(&text)
            .map_err(|error| HandoverError::damaged(error.to_string()))?;
        let mut imports = taken.exported.imports();
        let operators = config.operators();
        let (links, now) = (BTreeMap::new(), Instant::now());
        let resumed = world
            .core
            .resume(document, links, &mut imports, operators, now);
        resumed.map(|()| world)
    }

    /// The same core in another process.
    fn travel(self) -> Self {
        let taken = self.take();
        let config = self.config.clone();
        let mut next = Self::resume(&config, taken).unwrap();
        self.core.leave();
        next.core.begin();
        next
    }

    /// What an operator sees, without the times.
    fn view(&mut self) -> Value {
        let core = &mut self.core;
        let [descriptors, unread] = core.shared_resources();
        let services: Vec<crate::model::Service> =
            core.services(true).into_iter().map(Into::into).collect();
        let mut view = json!({
            "services": services,
            "partitions": core.partitions(),
            "listeners": core.listeners(),
            "connections": core.connections(),
            "metrics": core.service_metrics(),
            "partition_metrics": core.partition_metrics(),
            "refusals": core.refusal_metrics(),
            "descriptors": descriptors,
            "unread": unread,
        });
        remove_times(&mut view);
        // How many there are in all depends on what the process itself has open, with both cores.
        for name in ["descriptors", "unread"] {
            let shared = view[name].as_object_mut().unwrap();
            shared.remove("capacity");
            for owner in shared["owners"].as_array_mut().unwrap() {
                owner.as_object_mut().unwrap().remove("limit");
            }
        }
        view
    }
}

/// Removes the seconds that have passed since something.
fn remove_times(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !name.ends_with("_seconds") || name == "uptime_seconds");
            fields.values_mut().for_each(remove_times);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_times),
        _ => {}
    }
}

/// A process at an endpoint.
struct Client(OwnedFd);

impl Client {
    fn connect(path: &Path) -> Self {
        Self(seqpacket::connect(path, STEP).unwrap())
    }

    fn send(&self, message: &ClientMessage) -> &Self {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        message::send(&self.0, &bytes, &[]).unwrap();
        self
    }

    /// The message that has arrived.
    fn recv(&self) -> Option<BrokerMessage> {
        let mut bytes = [0; MAX_MESSAGE];
        hvsock_sys::set_nonblocking(&self.0, true).unwrap();
        let received = message::recv(&self.0, &mut bytes).ok()?;
        BrokerMessage::decode(&bytes[..received.len]).ok()
    }
}

fn service(number: u32) -> ServiceId {
    ServiceId::from_port(number)
}

fn listen(number: u32) -> ClientMessage {
    ClientMessage::Listen(Listen {
        flags: Flags::default(),
        backlog: 4,
        transports: Transports::DESCRIPTOR,
        address: SockAddrHv::new(VmId::WILDCARD, service(number)),
    })
}

fn lease(name: &str) -> ClientMessage {
    ClientMessage::Register(Register {
        service: service(2000),
        name: name.into(),
        purpose: String::new(),
    })
}

fn register(core: &mut Core, number: u32) {
    let name = format!("service {number}").parse().unwrap();
    let registration = Registration::new(service(number), name);
    let origin = Origin::Stored("services".into());
    core.apply(hvsock_registry::store::Change::Added(Box::new(Entry {
        registration,
        origin,
    })));
}

fn add_container(core: &mut Core, name: &str) -> hvsock_fabric::PartitionKey {
    let name: PartitionName = name.parse().unwrap();
    let spec = PartitionSpec {
        kind: PartitionKind::Container,
        vm_id: VmId::of_container(name.as_str()),
        name: name.clone(),
        groups: vec!["blue".into()],
        state: PartitionState::Unknown,
    };
    core.add_container(spec, false).unwrap();
    core.fabric.by_name(&name).unwrap()
}

/// A core with everything but connections, and the processes that have it.
fn full(folder: &Path) -> (World, Vec<Client>) {
    let mut world = World::open(folder);
    let core = &mut world.core;
    (1000..1003).for_each(|number| register(core, number));
    let [web, db, gone] = ["web", "db", "gone"].map(|name| add_container(core, name));
    core.remove_partition(gone);
    core.set_state(web, PartitionState::Paused).unwrap();
    let own = std::process::id();
    let process = Process::open(own).unwrap();
    let bound = ToBind {
        oci_id: "0123".into(),
        id: process.id().unwrap(),
        process: Arc::new(process),
    };
    let (number, _) = core.bind_container(db, &bound).unwrap();
    core.container_frozen(db, number, true);
    let report = GuestReport {
        health: Health::Ok,
        load: [1.5, 0.5, 0.25],
        ..GuestReport::default()
    };
    core.guest_heartbeat(web, report);
    core.telemetry.count_opened(Some(service(1000)));
    core.telemetry.count_closed(Some(service(1000)), 7, 9);
    core.telemetry.count_refused(&Refusal::NoListener);
    let (own, web) = (core.dirs.endpoint(), core.dirs.container("web"));
    let mut clients: Vec<_> = [1000, 1001]
        .map(listen)
        .iter()
        .map(|request| {
            let client = Client::connect(&own);
            client.send(request);
            client
        })
        .collect();
    let leasing = Client::connect(&own);
    leasing.send(&lease("leased"));
    clients.extend([
        leasing,
        Client::connect(&own),
        Client::connect(&web.join("endpoint")),
    ]);
    world.turn();
    world.turn();
    for client in &clients[..3] {
        let answer = client.recv();
        let refused = matches!(answer, None | Some(BrokerMessage::Refused(_)));
        assert!(!refused, "{answer:?}");
    }
    (world, clients)
}

#[test]
fn an_operator_sees_the_same_before_and_after_a_handover() {
    let folder = tempfile::tempdir().unwrap();
    let (mut world, clients) = full(folder.path());
    let before = world.view();
    let mut world = world.travel();
    assert_eq!(world.view(), before);
    assert_eq!(before["listeners"].as_array().unwrap().len(), 2);
    // All of it still works: a listener, an idle process, and a lease that ends.
    drop(clients);
    world.turn();
    world.turn();
    assert_eq!(world.view()["listeners"], json!([]));
    let leased = "leased".parse().unwrap();
    assert!(
        world
            .core
            .registry()
            .unwrap()
            .resolve(&hvsock_address::ServiceRef::Name(leased))
            .is_err()
    );
    let own = Client::connect(&world.core.dirs.endpoint());
    own.send(&listen(1000));
    world.turn();
    assert!(matches!(own.recv(), Some(BrokerMessage::Listening(_))));
}

#[test]
fn a_process_that_was_idle_sends_its_request_to_the_successor() {
    let folder = tempfile::tempdir().unwrap();
    let (world, clients) = full(folder.path());
    let mut world = world.travel();
    clients[3].send(&listen(1002));
    world.turn();
    assert!(matches!(
        clients[3].recv(),
        Some(BrokerMessage::Listening(_))
    ));
}

#[test]
fn a_process_is_charged_for_what_it_had_before_whatever_the_limit_is() {
    let folder = tempfile::tempdir().unwrap();
    let (mut world, _clients) = full(folder.path());
    let before = world.view()["descriptors"].clone();
    assert!(before["used"].as_u64().unwrap() > 5, "{before}");
    let mut world = world.travel();
    assert_eq!(world.view()["descriptors"], before);
}

#[test]
fn a_report_of_a_guest_that_json_cannot_express_stops_no_handover() {
    let folder = tempfile::tempdir().unwrap();
    let (mut world, _clients) = full(folder.path());
    let web = world.core.fabric.by_name(&"web".parse().unwrap()).unwrap();
    let report = GuestReport {
        load: [f64::NAN, f64::INFINITY, 0.25],
        ..GuestReport::default()
    };
    world.core.guest_heartbeat(web, report);
    let world = world.travel();
    let guest = world.core.liveness.guest(web, Instant::now()).unwrap();
    assert!(guest.report.is_none() && guest.last_seen_seconds.is_some());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: hvsock_testkit::cases(16), ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_document_is_refused_or_harmless(
        edits in vec((any::<u32>(), any::<u8>(), any::<u64>()), 1..4),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let (world, _clients) = full(folder.path());
        let mut taken = world.take();
        for (node, kind, value) in edits {
            Edit { node, kind, value }.apply(&mut taken.json);
        }
        if let Ok(mut other) = World::resume(&world.config, taken) {
            other.view();
            let again = other.take();
            prop_assert!(World::resume(&world.config, again).is_ok());
            other.core.leave();
        }
        world.core.leave();
    }
}

/// A connect of a process that waits, as one does whose owner leaves too many messages unread.
fn wait(world: &mut World, named: Option<NamedAddress>, text: bool) -> OwnedFd {
    let core = &mut world.core;
    let own = core.fabric.root();
    let (socket, client) = match text {
        true => hvsock_sys::stream::pair().unwrap(),
        false => seqpacket::pair().unwrap(),
    };
    hvsock_sys::set_nonblocking(&socket, true).unwrap();
    let caller = crate::callers::Caller::of(&socket).unwrap();
    let entry = match text {
        true => sessions::Entry::Text(TextEntry {
            by_port: true,
            ..TextEntry::default()
        }),
        false => sessions::Entry::Endpoint,
    };
    let mut session = core.sessions.open(socket.into(), own, caller, entry);
    session.named = named.map(Arc::new);
    let connect = Connect {
        flags: Flags::default(),
        timeout_ms: 0,
        transports: match text {
            true => Transports::ATTACHED,
            false => Transports::DESCRIPTOR,
        },
        address: SockAddrHv::new(VmId::LOOPBACK, service(1000)),
    };
    let refusal = Refusal::TimedOut;
    core.park(session, &connect, Owner::Operator, &refusal);
    client
}

#[test]
fn a_request_that_waits_is_handled_by_the_successor_as_if_it_had_just_arrived() {
    let folder = tempfile::tempdir().unwrap();
    let (mut world, clients) = full(folder.path());
    let named = NamedAddress {
        partition: IdOrName::Id(VmId::LOOPBACK),
        service: IdOrName::Name("service 1000".into()),
    };
    let waiting = [None, Some(named)].map(|named| Client(wait(&mut world, named, false)));
    let text = wait(&mut world, None, true);
    let mut world = world.travel();
    for client in &waiting {
        let answer = client.recv();
        assert!(
            matches!(answer, Some(BrokerMessage::Connected(_))),
            "{answer:?}"
        );
    }
    let mut answer = [0; 64];
    let count = hvsock_sys::stream::recv(&text, &mut answer).unwrap();
    assert!(answer[..count].starts_with(b"OK "), "{answer:?}");
    assert_eq!(world.core.connections.len(), 3);
    let offered = clients[0].recv();
    assert!(
        matches!(offered, Some(BrokerMessage::Incoming(_))),
        "{offered:?}"
    );
    // The idle process is neither evicted nor answered.
    world.turn();
    assert!(clients[3].recv().is_none() && world.core.sessions.iter().count() == 5);
}

#[test]
fn a_socket_to_which_a_process_connects_its_own_is_the_successors() {
    let folder = tempfile::tempdir().unwrap();
    let (mut world, _clients) = full(folder.path());
    let client = Client::connect(&world.core.dirs.endpoint());
    client.send(&ClientMessage::Attach { filler: 0 });
    world.turn();
    let received = message::recv_with_descriptors(&client.0, &mut [0; MAX_MESSAGE]).unwrap();
    let path = &received.descriptors[0];
    let charged = world.view()["descriptors"]["used"].clone();
    let mut world = world.travel();
    assert_eq!(world.view()["descriptors"]["used"], charged);
    let own = hvsock_sys::stream::connect_by_descriptor(path).unwrap();
    client.send(&ClientMessage::Connect(Connect {
        flags: Flags::default(),
        timeout_ms: 0,
        transports: Transports::ATTACHED,
        address: SockAddrHv::new(VmId::LOOPBACK, service(1000)),
    }));
    world.turn();
    assert!(matches!(client.recv(), Some(BrokerMessage::Connected(_))));
    let mut world = world;
    world.turn();
    assert_eq!(world.view()["connections"][0]["transport"], "attached");
    drop(own);
}

/// Sends a line of the text protocol, which the broker has read then.
fn text_request(world: &mut World, line: &str) -> OwnedFd {
    let client = std::os::unix::net::UnixStream::connect(world.core.dirs.text()).unwrap();
    let client = OwnedFd::from(client);
    hvsock_sys::stream::send(&client, line.as_bytes()).unwrap();
    hvsock_sys::set_nonblocking(&client, true).unwrap();
    (0..3).for_each(|_| world.turn());
    client
}

/// What has arrived on a socket.
fn text_of(socket: &OwnedFd) -> String {
    let mut bytes = [0; 4096];
    let count = hvsock_sys::stream::recv(socket, &mut bytes).unwrap_or(0);
    String::from_utf8(bytes[..count].to_vec()).unwrap()
}

fn connect_as_text(world: &mut World) -> OwnedFd {
    let client = text_request(world, &format!("CONNECT loopback {}\n", 1000));
    let answer = text_of(&client);
    assert!(answer.starts_with("OK "), "{answer}");
    client
}

#[test]
fn a_listener_of_the_text_protocol_goes_on_with_its_accepts_and_connections() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::open(folder.path());
    register(&mut world.core, 1000);
    let listener = text_request(&mut world, "LISTEN any 1000\n");
    let answer = text_of(&listener);
    let token = answer.split_once("token=").unwrap().1.trim().to_owned();
    // One connection is established, another has arrived and is not accepted, and an ACCEPT waits after it.
    let accept = format!("ACCEPT {token}\n");
    let first = text_request(&mut world, &accept);
    let peer = connect_as_text(&mut world);
    (0..3).for_each(|_| world.turn());
    assert!(text_of(&first).starts_with("OK connection="));
    hvsock_sys::stream::send(&first, b"before").unwrap();
    let early = connect_as_text(&mut world);
    let charged = world.view()["descriptors"]["used"].clone();
    let mut world = world.travel();
    assert_eq!(world.view()["descriptors"]["used"], charged);
    (0..3).for_each(|_| world.turn());
    assert_eq!(text_of(&peer), "before");
    let second = text_request(&mut world, &accept);
    assert!(text_of(&second).starts_with("OK connection="));
    let third = text_request(&mut world, &accept);
    assert_eq!(text_of(&third), "");
    let mut world = world.travel();
    // The ACCEPT that waits gets the next one, and the bytes of all arrive.
    let late = connect_as_text(&mut world);
    (0..3).for_each(|_| world.turn());
    assert!(text_of(&third).starts_with("OK connection="));
    for (program, peer) in [(&first, &peer), (&second, &early), (&third, &late)] {
        hvsock_sys::stream::send(program, b"to").unwrap();
        hvsock_sys::stream::send(peer, b"fro").unwrap();
        (0..3).for_each(|_| world.turn());
        assert_eq!(
            (text_of(peer), text_of(program)),
            ("to".into(), "fro".into())
        );
    }
    assert_eq!(world.view()["listeners"].as_array().unwrap().len(), 1);
    // It ends with its program.
    drop(listener);
    (0..3).for_each(|_| world.turn());
    assert_eq!(world.view()["listeners"], json!([]));
    let refused = text_request(&mut world, &accept);
    assert!(text_of(&refused).starts_with("ERR no_listener"));
}

#[test]
fn damaged_listeners_of_the_text_protocol_are_errors() {
    for (at, value) in [
        ("/text_listeners/version", json!(2)),
        ("/text_listeners/listeners/0/channel", json!(99)),
        ("/text_listeners/listeners/0/client", json!(99)),
        ("/text_listeners/listeners/0/partition", json!(99)),
        ("/text_listeners/listeners/0/token", json!("guess")),
        ("/text_listeners/listeners/0/callback", json!(99)),
        ("/text_listeners/listeners/0/waiting/count", json!(9999)),
        ("/text_listeners/relays/0/id", json!(7)),
        ("/text_listeners/relays", json!([])),
        ("/text_listeners/last_relay", json!(0)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut world = World::open(folder.path());
        register(&mut world.core, 1000);
        let listener = text_request(&mut world, "LISTEN any 1000\n");
        let answer = text_of(&listener);
        let token = answer.split_once("token=").unwrap().1.trim().to_owned();
        let accepts = [(); 2].map(|()| text_request(&mut world, &format!("ACCEPT {token}\n")));
        let _peer = connect_as_text(&mut world);
        (0..3).for_each(|_| world.turn());
        let mut taken = world.take();
        let listeners = taken.json.pointer_mut("/text_listeners/listeners/0");
        listeners
            .unwrap()
            .as_object_mut()
            .unwrap()
            .entry("callback")
            .or_insert(Value::Null);
        *taken.json.pointer_mut(at).unwrap() = value.clone();
        assert!(World::resume(&world.config, taken).is_err(), "{at} {value}");
        world.core.leave();
        drop(accepts);
    }
}
