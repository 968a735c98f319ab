//! Leases: who holds a service, and which registrations wait.

use std::collections::BTreeMap;

use hvsock_address::ElementName;
use hvsock_registry::Registration;
use hvsock_registry::store::Origin;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn service(number: u32) -> ServiceId {
    ServiceId::from_port(number)
}

fn entry(number: u32, purpose: u64) -> Box<Entry> {
    let name = ElementName::new(format!("service {number}")).unwrap();
    let mut registration = Registration::new(service(number), name);
    registration.purpose = Some(purpose.to_string());
    Box::new(Entry {
        registration,
        origin: Origin::BuiltIn,
    })
}

#[test]
fn a_session_holds_a_service_until_its_lease_ends() {
    let mut leases = Leases::default();
    leases.grant(service(1), 7);
    assert!(leases.contains(service(1)) && !leases.contains(service(2)));
    assert!(leases.is_held_by(service(1), 7) && !leases.is_held_by(service(1), 8));
    leases.set_session(service(1), 3);
    let ended = EndedLease { session: Some(3) };
    assert_eq!(leases.end(service(1)), Some(ended));
    assert_eq!(leases.end(service(1)), None);
    // The late end of the old session is not the new one's.
    leases.grant(service(1), 8);
    assert!(!leases.is_held_by(service(1), 7));
    assert_eq!(leases.end(service(1)), Some(EndedLease { session: None }));
}

#[derive(Clone, Debug)]
enum Op {
    Grant(u32, u64),
    SetSession(u32, usize),
    End(u32),
    Block(u32, u64),
    Unblock(u32),
    TakeBlocked,
}

fn op() -> impl Strategy<Value = Op> {
    let service = 0..4_u32;
    prop_oneof![
        (service.clone(), 0..4_u64).prop_map(|(service, serial)| Op::Grant(service, serial)),
        (service.clone(), 0..9_usize).prop_map(|(service, index)| Op::SetSession(service, index)),
        service.clone().prop_map(Op::End),
        (service.clone(), any::<u64>()).prop_map(|(service, purpose)| Op::Block(service, purpose)),
        service.prop_map(Op::Unblock),
        Just(Op::TakeBlocked),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn leases_agree_with_two_plain_maps(ops in vec(op(), 1..60)) {
        let mut leases = Leases::default();
        let mut held: BTreeMap<u32, (u64, Option<usize>)> = BTreeMap::new();
        let mut waiting: BTreeMap<u32, u64> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Grant(number, serial) => {
                    leases.grant(service(number), serial);
                    held.insert(number, (serial, None));
                }
                Op::SetSession(number, index) => {
                    leases.set_session(service(number), index);
                    held.entry(number).and_modify(|(_, session)| *session = Some(index));
                }
                Op::End(number) => {
                    let ended = leases.end(service(number)).map(|lease| lease.session);
                    prop_assert_eq!(ended, held.remove(&number).map(|(_, session)| session));
                }
                Op::Block(number, purpose) => {
                    leases.block(entry(number, purpose));
                    waiting.insert(number, purpose);
                }
                Op::Unblock(number) => {
                    leases.unblock(service(number));
                    waiting.remove(&number);
                }
                Op::TakeBlocked => {
                    let taken: Vec<_> = leases.take_blocked().collect();
                    let want = std::mem::take(&mut waiting).into_iter();
                    let mut want: Vec<_> = want.map(|(number, purpose)| entry(number, purpose)).collect();
                    want.sort_by_key(|entry| entry.registration.id);
                    prop_assert_eq!(taken, want);
                }
            }
            let blocked: Vec<_> = leases.blocked().map(|entry| entry.registration.id).collect();
            let mut want: Vec<_> = waiting.keys().copied().map(service).collect();
            want.sort();
            prop_assert_eq!(blocked, want);
            for (number, (serial, _)) in &held {
                for candidate in 0..4 {
                    prop_assert_eq!(leases.is_held_by(service(*number), candidate), candidate == *serial);
                }
            }
        }
    }
}
