//! Links that another process takes over: here both are in one process, and the predecessor leaves as a process
//! that ends does, without a word.

use std::collections::HashMap;
use std::time::Instant;

use serde_json::{Value, json};

use super::super::KernelLink;
use super::super::host::snapshot::VmSnapshot;
use super::*;
use crate::guest_link::{GuestLink, LinkSettings, Resuming};
use crate::handover::testing::exported;
use crate::handover::{HandoverError, Imports, LinkDocument};

impl World {
    /// The link of a VM that is added.
    fn link(&self, vm: &Vm) -> KernelLink {
        KernelLink {
            cid: vm.cid,
            host: Arc::clone(&self.host),
            watch: None,
        }
    }
}

/// The host's side of a process that takes over.
struct Successor {
    machine: Machine,
    host: Arc<KernelHost>,
}

impl Successor {
    fn new(machine: &Machine) -> Self {
        let host = KernelHost::start_dormant(Box::new(machine.clone())).unwrap();
        Self {
            machine: machine.clone(),
            host: Arc::new(host),
        }
    }

    fn resume(
        &self,
        cid: u32,
        document: LinkDocument,
        imports: &mut Imports,
    ) -> Result<(KernelLink, Vm), HandoverError> {
        let (sender, events) = mpsc::channel();
        let sender = ReportSender::new(move |event| {
            let _ = sender.send(event);
        });
        let settings = LinkSettings {
            cid: Some(cid),
            max_connections: 16,
        };
        let none = HashMap::new();
        let resuming = Resuming::new(settings, sender, &none);
        let snapshot: VmSnapshot = document.read(super::super::KIND)?;
        assert!(snapshot.namespace(imports)?.is_none());
        let host = Arc::clone(&self.host);
        let link = KernelLink::resume(host, None, snapshot, imports, resuming)?;
        Ok((link, Vm { cid, events }))
    }
}

fn freeze(links: &[&KernelLink]) {
    links.iter().for_each(|link| link.freeze().unwrap());
    for link in links {
        link.frozen(Instant::now() + WAIT).unwrap();
    }
}

#[test]
fn vms_that_are_taken_over_keep_their_ports_and_who_connected_meanwhile_is_served() {
    let world = World::new();
    let (one, other) = (world.vm(42), world.vm(43));
    world.offer(&one, &[(5000, true), (5001, false)]);
    world.offer(&other, &[(5000, true), (5002, true)]);
    world.host.expect(43, 1 << 24).unwrap();
    let links = [world.link(&one), world.link(&other)];
    let guest = world.machine.connect_from(42, 5000).unwrap();
    let (id, request) = one.request();
    let socket = request.socket.unwrap();
    links[0].taken(id);
    freeze(&[&links[0], &links[1]]);
    // They wait in the queues of the ports.
    let waiting = [(42, 5000), (43, 5002), (43, 1 << 24)];
    let waiting = waiting.map(|(cid, port)| world.machine.connect_from(cid, port).unwrap());
    let (documents, mut imports) = exported(|exports| {
        let documents = links.iter().map(|link| link.hand_over(exports).unwrap());
        documents.collect::<Vec<_>>()
    });
    let successor = Successor::new(&world.machine);
    let mut resumed = Vec::new();
    // In another order than that of the CIDs.
    for (cid, document) in [43, 42].into_iter().zip(documents.into_iter().rev()) {
        resumed.push(successor.resume(cid, document, &mut imports).unwrap());
    }
    assert_eq!(imports.untaken(), 0);
    assert!(one.is_silent() && other.is_silent());
    std::mem::forget((world, links));
    resumed.iter().for_each(|(link, _)| link.thaw());
    let [(other_link, other), (one_link, one)] = &resumed[..] else {
        panic!("two links");
    };
    assert_eq!(one.request().1.service, Service::Port(5000));
    let mut ports = [other.request(), other.request()].map(|(id, request)| {
        other_link.taken(id);
        request.service.port().unwrap()
    });
    ports.sort_unstable();
    assert_eq!(ports, [5002, 1 << 24]);
    stream::send(&guest, b"hello").unwrap();
    assert_eq!(stream::recv(&socket, &mut [0; 8]).unwrap(), 5);
    // The ports are still nobody else's, and one that does not listen refuses.
    for port in [5000, 5001, 5002, 1 << 24] {
        let error = successor.machine.squat(port).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{port}");
    }
    assert!(is_refused(successor.machine.connect_from(42, 5001)));
    // It follows the core from then on. The predecessor's descriptors are still open here.
    other_link.release_port(1 << 24);
    assert!(!successor.host.expects(1 << 24));
    one_link.set_services(Vec::new());
    let _shared = successor.machine.connect_from(43, 5000).unwrap();
    assert_eq!(other.request().1.service, Service::Port(5000));
    assert!(one.is_silent() && other.is_silent());
    drop(waiting);
}

#[test]
fn vms_whose_successor_fails_go_on_with_their_ports_and_connects() {
    let world = World::new();
    let (one, other) = (world.vm(42), world.vm(43));
    world.offer(&one, &[(5000, true)]);
    world.offer(&other, &[(5000, false)]);
    let links = [world.link(&one), world.link(&other)];
    freeze(&[&links[0], &links[1]]);
    let listener = world.machine.listen_in(42, 6000);
    world.connect(&one, 6000, 1, WAIT);
    world.connect(&one, 6000, 2, WAIT);
    links[0].close(ConnectionId::from_u64(2), Refusal::TimedOut);
    let _waiting = world.machine.connect_from(42, 5000).unwrap();
    let (documents, mut imports) = exported(|exports| {
        let documents = links.iter().map(|link| link.hand_over(exports).unwrap());
        documents.collect::<Vec<_>>()
    });
    let successor = Successor::new(&world.machine);
    let mut resumed = Vec::new();
    for (cid, document) in [42, 43].into_iter().zip(documents) {
        resumed.push(successor.resume(cid, document, &mut imports).unwrap());
    }
    drop((resumed, successor));
    assert!(one.is_silent(), "it does something while it is frozen");
    links.iter().for_each(GuestLink::thaw);
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.push(match one.next() {
            LinkEvent::Request(_, request) => request.service.port().unwrap(),
            LinkEvent::Connected(id, _) => u32::try_from(id.as_u64()).unwrap(),
            other => panic!("{other:?}"),
        });
    }
    seen.sort_unstable();
    assert_eq!(seen, [1, 5000]);
    assert!(rustix::net::accept(&listener).is_ok());
    assert!(one.is_silent());
}

#[test]
fn a_port_that_was_in_the_way_is_had_by_the_successor_and_its_problem_ends() {
    let world = World::new();
    let vm = world.vm(42);
    let squatter = world.machine.squat(5000).unwrap();
    world.offer(&vm, &[(5000, true)]);
    assert!(matches!(vm.next(), LinkEvent::PortProblem(5000, Some(_))));
    let link = world.link(&vm);
    freeze(&[&link]);
    let (document, mut imports) = exported(|exports| link.hand_over(exports).unwrap());
    let successor = Successor::new(&world.machine);
    let (resumed, after) = successor.resume(42, document, &mut imports).unwrap();
    drop(squatter);
    std::mem::forget((world, link));
    resumed.thaw();
    assert!(matches!(after.next(), LinkEvent::PortProblem(5000, None)));
    let _guest = successor.machine.connect_from(42, 5000).unwrap();
    after.request();
}

fn example() -> Value {
    serde_json::from_str(include_str!("kernel-1.json")).unwrap()
}

/// The descriptors of the example: two sockets that listen, and one that is bound.
fn example_imports(machine: &Machine) -> Imports {
    let listening = |port| {
        let socket = machine.squat(port).unwrap();
        listen(&socket, 16).unwrap();
        socket
    };
    let (_, imports) = exported(|exports| {
        exports.fd(listening(1 << 24)).unwrap();
        exports.fd(listening(5000)).unwrap();
        exports.fd(machine.squat(5001).unwrap()).unwrap();
    });
    imports
}

#[test]
fn the_committed_example_is_restored_and_handed_over_as_it_is() {
    let machine = Machine::new();
    let document: LinkDocument = serde_json::from_value(example()).unwrap();
    let mut imports = example_imports(&machine);
    let successor = Successor::new(&machine);
    let (link, _vm) = successor
        .resume(42, document.clone(), &mut imports)
        .unwrap();
    assert_eq!(imports.untaken(), 0);
    let state = PartitionState::Paused;
    let (again, _) = exported(|exports| {
        let snapshot = link.host.snapshot(42, Some(state), exports).unwrap();
        LinkDocument::new(super::super::KIND, &snapshot).unwrap()
    });
    assert_eq!(again, document);
}

#[test]
fn a_damaged_state_is_an_error_and_binds_nothing() {
    let damages: [(&str, Value); 16] = [
        ("/kind", json!("hybrid")),
        ("/state/version", json!(0)),
        ("/state/cid", json!(43)),
        ("/state/cid", json!(2)),
        ("/state/namespace", json!(7)),
        ("/state/told", json!("asleep")),
        ("/state/services/0/service", json!("web")),
        ("/state/services/0/port", json!(-1)),
        ("/state/expected/0/listens", json!(false)),
        ("/state/expected/0/socket", json!(2)),
        ("/state/expected/0/port", json!(5000)),
        ("/state/ports/0/port", json!(5001)),
        ("/state/ports/0/listens", json!(false)),
        ("/state/ports/1/listens", json!(true)),
        ("/state/ports/1/socket", json!(1)),
        ("/state/ports/1/socket", json!(1 << 20)),
    ];
    for (at, value) in damages {
        let machine = Machine::new();
        let mut document = example();
        *document.pointer_mut(at).unwrap() = value.clone();
        let document: LinkDocument = serde_json::from_value(document).unwrap();
        let mut imports = example_imports(&machine);
        let successor = Successor::new(&machine);
        let resumed = successor.resume(42, document, &mut imports);
        assert!(resumed.is_err(), "{at} {value}");
        drop((successor, imports));
        assert!(machine.squat(5000).is_ok() && machine.squat(5001).is_ok());
    }
}
