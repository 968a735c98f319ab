//! The table of sessions behaves like a plain list of them.

use std::time::{Duration, Instant};

use hvsock_fabric::{ListenerId, PartitionKey};
use proptest::collection::vec;
use proptest::prelude::*;

use super::session::MAX_QUERIES;
use super::{Entry, Role, Session, SessionLimits, Sessions};
use crate::callers::Caller;

const LIMITS: SessionLimits = SessionLimits {
    idle_slots: 3,
    idle_timeout: Duration::from_secs(10),
};
const LISTENER: Role = Role::Listener(ListenerId::from_u64(1));

fn partition(number: u64) -> PartitionKey {
    PartitionKey::from_u64(number)
}

/// Opens a session, with its own serial number as its descriptor, and adds it.
fn add(sessions: &mut Sessions<u64>, of: u64, role: Role, now: Instant) -> usize {
    let mut session = sessions.open(0, partition(of), Caller::UNKNOWN, Entry::Endpoint);
    session.socket = session.serial();
    session.assume(role);
    let next = sessions.next_index();
    let index = sessions.insert(session, now);
    assert_eq!(index, next);
    index
}

fn socket(session: Option<Session<u64>>) -> Option<u64> {
    session.map(|session| session.socket)
}

#[test]
fn a_session_that_is_taken_out_keeps_its_index_until_it_is_closed() {
    let (mut sessions, now) = (Sessions::new(LIMITS), Instant::now());
    let first = add(&mut sessions, 0, Role::Idle, now);
    let taken = sessions.take(first).unwrap();
    assert_eq!(socket(sessions.take(first)), None);
    assert_eq!(socket(sessions.withdraw(first)), None);
    assert!(sessions.get(first).is_none() && !sessions.handles_events(first));
    assert_ne!(add(&mut sessions, 0, Role::Idle, now), first);
    sessions.give_back(first, taken, false);
    assert!(sessions.handles_events(first));
    assert!(sessions.take(first).is_some());
    sessions.close(first);
    assert_eq!(add(&mut sessions, 0, Role::Idle, now), first);
    // Present sessions are not closed, and unknown indexes are ignored.
    sessions.close(first);
    sessions.close(99);
    assert!(sessions.get(first).is_some());
}

#[test]
fn a_session_that_is_closed_while_it_waits_has_no_turn() {
    let (mut sessions, now) = (Sessions::new(LIMITS), Instant::now());
    for _ in 0..2 {
        let index = add(&mut sessions, 0, LISTENER, now);
        let taken = sessions.take(index).unwrap();
        sessions.give_back(index, taken, true);
    }
    assert_eq!(sessions.unfinished(), 2);
    assert_eq!(socket(sessions.withdraw(0)), Some(1));
    // The next session at the same index does not inherit the turn.
    assert_eq!(add(&mut sessions, 0, LISTENER, now), 0);
    assert_eq!(sessions.unfinished(), 1);
    assert_eq!(
        (sessions.next_turn(), sessions.next_turn()),
        (Some(1), None)
    );
    assert!(!sessions.has_unfinished());
}

#[test]
fn clients_of_a_vms_hybrid_socket_evict_each_other_and_no_client_of_an_endpoint() {
    let (mut sessions, now) = (Sessions::new(LIMITS), Instant::now());
    add(&mut sessions, 0, Role::Idle, now);
    let vm = partition(7);
    for _ in 0..LIMITS.idle_slots {
        assert_eq!(socket(sessions.evict_idle(vm)), None);
        let caller = Caller::UNKNOWN;
        let session = sessions.open(0, partition(0), caller, Entry::hybrid(vm));
        assert!(session.is_hybrid() && session.socket_of() == vm);
        sessions.insert(session, now);
    }
    assert_eq!(sessions.of_partition(vm).len(), LIMITS.idle_slots);
    assert_eq!(sessions.of_partition(partition(0)).len(), 1);
    assert!(sessions.evict_idle(partition(0)).is_none());
    assert!(
        sessions
            .evict_idle(vm)
            .is_some_and(|oldest| oldest.serial() == 2)
    );
}

#[test]
fn only_idle_sessions_exceed_the_limit_of_queries() {
    let mut sessions = Sessions::new(LIMITS);
    let mut session = sessions.open(0_u64, partition(0), Caller::UNKNOWN, Entry::Endpoint);
    for _ in 0..MAX_QUERIES {
        session.count_query();
        assert!(!session.exceeds_queries());
    }
    session.count_query();
    assert!(session.exceeds_queries());
    session.assume(LISTENER);
    assert!(!session.exceeds_queries());
}

#[test]
fn an_endless_idle_timeout_does_not_overflow() {
    let limits = SessionLimits {
        idle_timeout: Duration::MAX,
        ..LIMITS
    };
    let (mut sessions, now) = (Sessions::new(limits), Instant::now());
    add(&mut sessions, 0, Role::Idle, now);
    assert!(sessions.next_deadline() > Some(now));
}

/// A session of the reference.
#[derive(Clone, Copy)]
struct Plain {
    serial: u64,
    partition: u64,
    /// `None` if it is not idle.
    deadline: Option<Instant>,
}

#[derive(Clone, Debug)]
enum Op {
    Add {
        partition: u64,
        idle: bool,
    },
    /// Serves a session: it stays idle or becomes a listener, and may have more messages.
    Serve {
        nth: usize,
        idle: bool,
        more: bool,
    },
    /// Serves the session whose turn it is.
    Turn {
        more: bool,
    },
    /// Takes a session out, which is then closed.
    Close {
        nth: usize,
    },
    Withdraw {
        nth: usize,
    },
    Expire {
        after: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let nth = 0..8_usize;
    prop_oneof![
        4 => (0..3_u64, any::<bool>()).prop_map(|(partition, idle)| Op::Add { partition, idle }),
        4 => (nth.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(nth, idle, more)| Op::Serve { nth, idle, more }),
        2 => any::<bool>().prop_map(|more| Op::Turn { more }),
        1 => nth.clone().prop_map(|nth| Op::Close { nth }),
        1 => nth.prop_map(|nth| Op::Withdraw { nth }),
        1 => (0..8_u64).prop_map(|after| Op::Expire { after }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_table_agrees_with_a_plain_list(ops in vec(op(), 1..80)) {
        let mut now = Instant::now();
        let mut sessions = Sessions::new(LIMITS);
        let (mut list, mut queue, mut last) = (Vec::<Plain>::new(), Vec::<u64>::new(), 0);
        let index_of = |sessions: &Sessions<u64>, serial| {
            let mut all = sessions.iter();
            all.find(|(_, session)| session.serial() == serial).map(|(index, _)| index)
        };
        for op in ops {
            match op {
                Op::Add { partition: of, idle } => {
                    last += 1;
                    if idle {
                        let mut same = list.iter().filter(|one| one.partition == of && one.deadline.is_some());
                        let evicted = (same.clone().count() >= LIMITS.idle_slots)
                            .then(|| same.next().unwrap().serial);
                        prop_assert_eq!(socket(sessions.evict_idle(partition(of))), evicted);
                        list.retain(|one| Some(one.serial) != evicted);
                        queue.retain(|serial| Some(*serial) != evicted);
                    }
                    let role = if idle { Role::Idle } else { LISTENER };
                    add(&mut sessions, of, role, now);
                    let deadline = idle.then(|| now + LIMITS.idle_timeout);
                    list.push(Plain { serial: last, partition: of, deadline });
                }
                Op::Serve { nth, idle, more } => {
                    let count = list.len().max(1);
                    let Some(one) = list.get_mut(nth % count) else { continue };
                    let index = index_of(&sessions, one.serial).unwrap();
                    let waits = queue.contains(&one.serial);
                    prop_assert_eq!(sessions.handles_events(index), !waits);
                    let mut session = sessions.take(index).unwrap();
                    if !idle && session.is_idle() {
                        session.assume(LISTENER);
                        one.deadline = None;
                    }
                    sessions.give_back(index, session, more);
                    if more && !waits {
                        queue.push(one.serial);
                    }
                }
                Op::Turn { more } => {
                    let want = (!queue.is_empty()).then(|| queue.remove(0));
                    let index = sessions.next_turn();
                    let serial = index.map(|index| sessions.get(index).unwrap().serial());
                    prop_assert_eq!(serial, want);
                    if let (Some(index), Some(serial)) = (index, serial) {
                        let session = sessions.take(index).unwrap();
                        sessions.give_back(index, session, more);
                        queue.extend(more.then_some(serial));
                    }
                }
                Op::Close { .. } | Op::Withdraw { .. } if list.is_empty() => {}
                Op::Close { nth } | Op::Withdraw { nth } => {
                    let one = list.remove(nth % list.len());
                    queue.retain(|serial| *serial != one.serial);
                    let index = index_of(&sessions, one.serial).unwrap();
                    if matches!(op, Op::Close { .. }) {
                        prop_assert_eq!(socket(sessions.take(index)), Some(one.serial));
                        sessions.close(index);
                    } else {
                        prop_assert_eq!(socket(sessions.withdraw(index)), Some(one.serial));
                    }
                }
                Op::Expire { after } => {
                    now += Duration::from_secs(after);
                    while let Some(expired) = sessions.pop_expired(now) {
                        let first = list.iter().find(|one| one.deadline.is_some()).copied().unwrap();
                        prop_assert_eq!(first.serial, expired.serial());
                        prop_assert!(first.deadline.unwrap() <= now);
                        list.retain(|one| one.serial != first.serial);
                        queue.retain(|serial| *serial != first.serial);
                    }
                    prop_assert!(list.iter().all(|one| one.deadline.is_none_or(|at| at > now)));
                }
            }
            let deadline = list.iter().find_map(|one| one.deadline);
            prop_assert_eq!(sessions.next_deadline(), deadline);
            prop_assert_eq!(sessions.unfinished(), queue.len());
            for number in 0..3 {
                let of = sessions.of_partition(partition(number));
                let mut of: Vec<u64> = of.into_iter().map(|at| sessions.get(at).unwrap().serial()).collect();
                of.sort_unstable();
                let want = list.iter().filter(|one| one.partition == number);
                prop_assert_eq!(of, want.map(|one| one.serial).collect::<Vec<_>>());
            }
        }
    }
}
