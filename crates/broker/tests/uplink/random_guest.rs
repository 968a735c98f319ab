//! Brokers in guests that send valid frames in no sensible order.

use hvsock::{ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::Refused;
use hvsock_endpoint::uplink::{
    Announce, ChildId, ChildState, ConnectUp, ExplainUp, GuestFrame, Request, What,
};
use hvsock_testkit::guest::Options;
use hvsock_testkit::wait::eventually;
use hvsock_testkit::world::{PORT, World};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use crate::guest_broker::GuestBroker;

/// Uplinks, and frames on each.
const ROUNDS: usize = 30;
const FRAMES: usize = 60;

fn frame(ids: Vec<VmId>) -> impl Strategy<Value = GuestFrame> {
    let child = (0..6_u32).prop_map(ChildId);
    let named = (1..6_u32).prop_map(ChildId);
    let request = (0..12_u64).prop_map(Request);
    let state = prop::sample::select(ChildState::ALL.to_vec());
    let id = prop::sample::select(ids);
    let port = prop::sample::select(vec![0, 22, 1023, 1024, PORT, 9999, 60_000, u32::MAX]);
    let refused = (any::<u32>(), "\\PC{0,20}").prop_map(|(code, detail)| Refused {
        code,
        errno: 1,
        detail,
    });
    let address = (id.clone(), prop::sample::select(vec![PORT, 9999]))
        .prop_map(|(vm, port)| SockAddrHv::new(vm, ServiceId::from_port(port)));
    prop_oneof![
        6 => (named.clone(), state.clone(), id, "[ab]|web|a/b|\\PC{0,9}").prop_map(
            |(child, state, id, name)| GuestFrame::Announce(Announce { child, state, id, name })
        ),
        6 => (named.clone(), state)
            .prop_map(|(child, state)| GuestFrame::ChildState { child, state }),
        2 => named.prop_map(|child| GuestFrame::Withdraw { child }),
        6 => (request.clone(), child.clone(), 0..9_u32, address.clone()).prop_map(
            |(request, child, timeout_ms, address)| {
                GuestFrame::Connect(ConnectUp { request, child, timeout_ms, address })
            }
        ),
        1 => (request.clone(), port)
            .prop_map(|(request, port)| GuestFrame::IncomingPort { request, port }),
        1 => (request.clone(), refused.clone())
            .prop_map(|(request, reason)| GuestFrame::IncomingRefused { request, reason }),
        4 => request.clone().prop_map(|request| GuestFrame::Cancel { request }),
        2 => any::<u64>().prop_map(|number| GuestFrame::Sync { number }),
        2 => prop::sample::select(vec![GuestFrame::Ping, GuestFrame::Pong]),
        4 => (request.clone(), child, any::<bool>(), address).prop_map(
            |(request, child, connects, address)| {
                let what = if connects { What::Connect } else { What::Listen };
                GuestFrame::Explain(ExplainUp { request, child, what, address })
            }
        ),
        1 => (request, refused)
            .prop_map(|(request, explanation)| GuestFrame::Explained { request, explanation }),
    ]
}

#[test]
fn whatever_a_guest_sends_its_host_and_other_guests_go_on() {
    let world = World::with_web(|_| ());
    world.vm("db", 44, &[]);
    let other = world.guest_of("db", Options::new(44));
    let mut bystander = GuestBroker::open(&other);
    bystander.announce_box();
    let guest = world.guest();
    let listener = world.listen();
    let partitions = world.handle().partitions().unwrap();
    let mut ids: Vec<VmId> = partitions.iter().map(|one| one.id).collect();
    ids.extend([
        VmId::PARENT,
        VmId::WILDCARD,
        VmId::CHILDREN,
        VmId::LOOPBACK,
        VmId::BROADCAST,
    ]);
    ids.push(VmId::of_container("a"));
    let frames = frame(ids);
    let mut runner = TestRunner::deterministic();
    for _ in 0..ROUNDS {
        let mut broker = GuestBroker::open(&guest);
        for _ in 0..FRAMES {
            let frame = frames.new_tree(&mut runner).unwrap().current();
            let mut bytes = Vec::new();
            frame.append(&mut bytes);
            if std::io::Write::write_all(&mut broker.client.stream, &bytes).is_err() {
                break;
            }
        }
    }
    bystander.sync();
    world.partition("db/box");
    let (inside, outside) = world.pair(&other, &listener);
    crate::traffic::ping(&inside, &outside);
    eventually("nothing of the guest is left", || {
        let all = world.handle().partitions().unwrap();
        all.len() == partitions.len() && world.partition("web").broker.is_none()
    });
    assert_eq!(guest.protocol_violations(), [""; 0]);
}
