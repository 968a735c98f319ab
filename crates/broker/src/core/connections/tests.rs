//! The owners of connections, and the counts of those with guests.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn id(number: u64) -> ConnectionId {
    ConnectionId::from_u64(number)
}

fn partition(number: u64) -> PartitionKey {
    PartitionKey::from_u64(number)
}

fn record(from: u64, to: u64, owner: ConnectionOwner) -> ConnectionRecord {
    let end = |number| EndRecord {
        partition: partition(number),
        caller: Caller::UNKNOWN,
    };
    ConnectionRecord {
        service: ServiceId::from_port(1),
        from: end(from),
        to: end(to),
        transport: Transport::Ring,
        counters: Arc::default(),
        owner,
        started: Instant::now(),
        _charge: None,
        claim: None,
        claimed_result: None,
        audited: None,
    }
}

#[test]
fn a_pending_connect_is_not_established_and_has_no_owner() {
    let mut connections = Connections::default();
    connections.begin(id(1), "a process waits", Instant::now());
    assert_eq!((connections.len(), connections.owner(id(1))), (0, None));
    assert_eq!(connections.take_pending(id(1)), Some("a process waits"));
    assert_eq!(connections.take_pending(id(1)), None);
}

#[test]
fn pending_connects_expire_in_the_order_of_their_deadlines() {
    let mut connections = Connections::default();
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    assert_eq!(
        (connections.next_deadline(), connections.expired(start)),
        (None, None)
    );
    for (number, seconds) in [(1, 30), (2, 10), (3, 20), (4, 10)] {
        connections.begin(id(number), (), after(seconds));
    }
    // An answer ends the wait.
    assert_eq!(connections.take_pending(id(4)), Some(()));
    assert_eq!(connections.next_deadline(), Some(after(10)));
    assert_eq!(connections.expired(after(9)), None);
    let mut expired = Vec::new();
    while let Some(id) = connections.expired(after(20)) {
        expired.push(id);
        connections.take_pending(id);
    }
    assert_eq!(expired, [id(2), id(3)]);
    assert_eq!(connections.next_deadline(), Some(after(30)));
    connections.take_pending(id(1));
    assert_eq!(connections.next_deadline(), None);
}

#[test]
fn only_connections_between_processes_move_to_another_thread() {
    let mut connections = Connections::<()>::default();
    let core = ConnectionOwner::DataThreads(Place::Core);
    let link = ConnectionOwner::Link(partition(1));
    connections.establish(id(1), record(0, 0, core));
    connections.establish(id(2), record(0, 1, link));
    for number in 1..4 {
        connections.moved(id(number), Place::Thread(3));
    }
    let moved = ConnectionOwner::DataThreads(Place::Thread(3));
    assert_eq!(connections.owner(id(1)), Some(moved));
    assert_eq!(connections.owner(id(2)), Some(link));
    assert_eq!(connections.owner(id(3)), None);
    assert_eq!(connections.ids(), [id(1), id(2)]);
}

#[derive(Clone, Debug)]
enum Op {
    Establish {
        from: u64,
        to: u64,
        link: Option<u64>,
    },
    Move {
        nth: usize,
    },
    Remove {
        nth: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..4_u64;
    prop_oneof![
        3 => (key.clone(), key.clone(), proptest::option::of(key))
            .prop_map(|(from, to, link)| Op::Establish { from, to, link }),
        1 => any::<usize>().prop_map(|nth| Op::Move { nth }),
        2 => any::<usize>().prop_map(|nth| Op::Remove { nth }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_counts_agree_with_a_plain_list(ops in vec(op(), 1..60)) {
        let mut connections = Connections::<()>::default();
        let (mut list, mut next) = (Vec::<(u64, u64, u64, Option<u64>)>::new(), 0);
        for op in ops {
            match op {
                Op::Establish { from, to, link } => {
                    next += 1;
                    let owner = match link {
                        Some(vm) => ConnectionOwner::Link(partition(vm)),
                        None => ConnectionOwner::DataThreads(Place::Core),
                    };
                    connections.establish(id(next), record(from, to, owner));
                    list.push((next, from, to, link));
                }
                Op::Move { nth } => {
                    if let Some((number, ..)) = list.get(nth % list.len().max(1)) {
                        connections.moved(id(*number), Place::Thread(1));
                    }
                }
                Op::Remove { .. } if list.is_empty() => {
                    prop_assert!(connections.remove(id(next)).is_none());
                }
                Op::Remove { nth } => {
                    let (number, from, ..) = list.remove(nth % list.len());
                    let removed = connections.remove(id(number)).unwrap();
                    prop_assert_eq!(removed.from.partition, partition(from));
                    prop_assert!(connections.remove(id(number)).is_none());
                }
            }
            prop_assert_eq!(connections.len(), list.len());
            let ids: Vec<_> = list.iter().map(|(number, ..)| id(*number)).collect();
            prop_assert_eq!(connections.ids(), ids);
            let by_partition = connections.by_partition();
            for key in 0..4 {
                let of_guests = list.iter().filter(|(_, from, to, link)| {
                    link.is_some_and(|vm| [*from, *to, vm].contains(&key))
                });
                prop_assert_eq!(connections.with_guests(partition(key)), of_guests.count());
                let all = list.iter().filter(|(_, from, to, _)| *from == key || *to == key).count();
                prop_assert_eq!(by_partition.get(&partition(key)).copied().unwrap_or(0), all);
            }
        }
        for (number, ..) in list {
            connections.remove(id(number));
        }
        prop_assert!(connections.with_guests.is_empty());
    }
}
