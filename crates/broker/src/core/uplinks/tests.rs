use std::collections::BTreeMap;
use std::time::Duration;

use hvsock_address::{ServiceId, VmId};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn key(number: u64) -> PartitionKey {
    PartitionKey::from_u64(number)
}

fn vm(number: u64) -> PartitionKey {
    key(1 + number)
}

fn opened(vms: u64) -> Uplinks {
    let mut uplinks = Uplinks::default();
    let now = Instant::now();
    for number in 0..vms {
        let session = UplinkSession::new(now);
        uplinks.open(vm(number), number as usize, session, now);
    }
    uplinks
}

fn expected(request: u64, from: PartitionKey, deadline: Instant) -> ExpectedConnect {
    ExpectedConnect {
        request: Request(request),
        from,
        address: SockAddrHv::new(VmId::PARENT, ServiceId::from_port(1)),
        deadline,
        _charge: None,
    }
}

#[test]
fn the_containers_and_the_requests_of_a_guest_are_limited() {
    let mut uplinks = opened(2);
    let of = vm(0);
    let most = u32::try_from(MAX_CHILDREN).unwrap();
    for number in 1..=most {
        assert_eq!(uplinks.check_child(of, ChildId(number)), Ok(()));
        uplinks.add_child(of, ChildId(number), key(100 + u64::from(number)));
    }
    assert_eq!(uplinks.check_child(of, ChildId(1)), Err(NotAdded::InUse));
    assert_eq!(
        uplinks.check_child(of, ChildId(most + 1)),
        Err(NotAdded::Full)
    );
    assert_eq!(uplinks.check_child(vm(1), ChildId(1)), Ok(()));
    let deadline = Instant::now();
    for number in 0..MAX_PENDING as u64 {
        assert_eq!(uplinks.check_request(of, Request(number)), Ok(()));
        let port = 5000 + number as u32;
        uplinks
            .expect(of, port, expected(number, of, deadline))
            .unwrap();
        uplinks
            .begin_incoming(of, ConnectionId::from_u64(number))
            .unwrap();
        let (sender, _) = std::sync::mpsc::sync_channel(1);
        let asked = uplinks.begin_explanation(of, Asker::Call(sender));
        assert!(asked.is_ok());
    }
    assert_eq!(uplinks.check_request(of, Request(0)), Err(NotAdded::InUse));
    assert_eq!(uplinks.check_request(of, Request(999)), Err(NotAdded::Full));
    let again = expected(999, of, deadline);
    assert_eq!(uplinks.expect(of, 5000, again), Err(NotAdded::InUse));
    let connection = ConnectionId::from_u64(999);
    assert_eq!(uplinks.begin_incoming(of, connection), Err(NotAdded::Full));
    let (sender, _) = std::sync::mpsc::sync_channel(1);
    let asked = uplinks.begin_explanation(of, Asker::Call(sender));
    assert!(matches!(asked, Err((NotAdded::Full, _))));
    assert_eq!(
        uplinks.begin_incoming(vm(7), connection),
        Err(NotAdded::NoUplink)
    );
    // Of another guest nothing is taken.
    assert!(uplinks.take_expected(vm(1), 5000).is_none());
    assert_eq!(uplinks.take_incoming(vm(1), Request(1)), None);
    assert!(uplinks.get(of).unwrap().has_asked(Request(128)));
    assert!(!uplinks.get(of).unwrap().has_asked(Request(129)));
    assert!(!uplinks.get(of).unwrap().has_asked(Request(0)));
    assert!(!uplinks.get(vm(1)).unwrap().has_asked(Request(1)));
}

#[derive(Clone, Debug)]
enum Op {
    Open(u64),
    Remove(u64),
    Announce(u64, u32),
    Withdraw(u64, u32),
    Expect(u64, u32, u64),
    Arrives(u64, u32),
    Incoming(u64),
    Answer(u64, u64),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let vms = 0..3_u64;
    prop_oneof![
        2 => vms.clone().prop_map(Op::Open),
        1 => vms.clone().prop_map(Op::Remove),
        4 => (vms.clone(), 1..5_u32).prop_map(|(vm, number)| Op::Announce(vm, number)),
        2 => (vms.clone(), 1..5_u32).prop_map(|(vm, number)| Op::Withdraw(vm, number)),
        4 => (vms.clone(), 0..6_u32, 0..50_u64).prop_map(|(vm, port, ms)| Op::Expect(vm, port, ms)),
        2 => (vms.clone(), 0..6_u32).prop_map(|(vm, port)| Op::Arrives(vm, port)),
        3 => vms.clone().prop_map(Op::Incoming),
        3 => (vms, 1..20_u64).prop_map(|(vm, number)| Op::Answer(vm, number)),
        1 => (0..30_u64).prop_map(Op::Wait),
    ]
}

/// What one machine has, in plain lists.
#[derive(Default)]
struct Model {
    children: BTreeMap<u32, PartitionKey>,
    ports: BTreeMap<u32, Instant>,
    incoming: BTreeMap<u64, u64>,
    asked: u64,
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_tables_agree_with_plain_lists(ops in vec(op(), 1..120)) {
        let mut uplinks = Uplinks::default();
        let mut model: BTreeMap<u64, Model> = BTreeMap::new();
        let (mut now, mut next) = (Instant::now(), 1000);
        for op in ops {
            next += 1;
            match op {
                Op::Open(number) if !model.contains_key(&number) => {
                    uplinks.open(vm(number), number as usize, UplinkSession::new(now), now);
                    model.insert(number, Model::default());
                }
                Op::Open(_) => {}
                Op::Remove(number) => {
                    let removed = uplinks.remove(vm(number));
                    prop_assert_eq!(removed.is_some(), model.remove(&number).is_some());
                }
                Op::Announce(of, number) => {
                    let allowed = uplinks.check_child(vm(of), ChildId(number));
                    let free = model.get(&of).is_some_and(|it| !it.children.contains_key(&number));
                    prop_assert_eq!(allowed.is_ok(), free);
                    if free {
                        uplinks.add_child(vm(of), ChildId(number), key(next));
                        model.get_mut(&of).unwrap().children.insert(number, key(next));
                    }
                }
                Op::Withdraw(of, number) => {
                    let removed = uplinks.remove_child(vm(of), ChildId(number));
                    let known = model.get_mut(&of).and_then(|it| it.children.remove(&number));
                    prop_assert_eq!(removed, known);
                }
                Op::Expect(of, port, ms) => {
                    let deadline = now + Duration::from_millis(ms);
                    let added = uplinks.expect(vm(of), port, expected(next, vm(of), deadline));
                    let free = model.get(&of).is_some_and(|it| !it.ports.contains_key(&port));
                    prop_assert_eq!(added.is_ok(), free);
                    if free {
                        prop_assert_eq!(uplinks.port_of(vm(of), Request(next)), Some(port));
                        model.get_mut(&of).unwrap().ports.insert(port, deadline);
                    }
                }
                Op::Arrives(of, port) => {
                    let taken = uplinks.take_expected(vm(of), port);
                    let known = model.get_mut(&of).and_then(|it| it.ports.remove(&port));
                    prop_assert_eq!(taken.map(|it| it.deadline), known);
                }
                Op::Incoming(of) => {
                    let begun = uplinks.begin_incoming(vm(of), ConnectionId::from_u64(next));
                    if let Some(known) = model.get_mut(&of) {
                        known.asked += 1;
                        known.incoming.insert(known.asked, next);
                        prop_assert_eq!(begun, Ok(Request(known.asked)));
                    } else {
                        prop_assert_eq!(begun, Err(NotAdded::NoUplink));
                    }
                }
                Op::Answer(of, number) => {
                    let taken = uplinks.take_incoming(vm(of), Request(number));
                    let known = model.get_mut(&of).and_then(|it| it.incoming.remove(&number));
                    prop_assert_eq!(taken, known.map(ConnectionId::from_u64));
                }
                Op::Wait(ms) => {
                    now += Duration::from_millis(ms);
                    while let Some((of, port)) = uplinks.expired(now) {
                        prop_assert!(uplinks.take_expected(of, port).is_some());
                    }
                    for known in model.values_mut() {
                        known.ports.retain(|_, deadline| *deadline > now);
                    }
                }
            }
            prop_assert_eq!(uplinks.vms().len(), model.len());
            let children: usize = model.values().map(|it| it.children.len()).sum();
            prop_assert_eq!(uplinks.children_count(), children);
            let deadlines = model.values().flat_map(|it| it.ports.values());
            prop_assert_eq!(uplinks.next_deadline(), deadlines.min().copied());
            let waiting: usize = model.values().map(|it| it.incoming.len()).sum();
            prop_assert_eq!(uplinks.all_incoming().len(), waiting);
            prop_assert_eq!(uplinks.has_waiting(), waiting > 0);
            for (of, known) in &model {
                for (number, partition) in &known.children {
                    prop_assert_eq!(uplinks.partition(vm(*of), ChildId(*number)), Some(*partition));
                    prop_assert_eq!(uplinks.number(*partition), Some(ChildId(*number)));
                }
                prop_assert_eq!(uplinks.vm_of(*of as usize), Some(vm(*of)));
            }
        }
        for number in 0..3 {
            uplinks.remove(vm(number));
        }
        prop_assert!(uplinks.children.is_empty() && uplinks.deadlines.is_empty());
        prop_assert!(uplinks.by_client.is_empty() && uplinks.waiting == 0 && uplinks.asking == 0);
    }
}
