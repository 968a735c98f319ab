//! Random operations of programs at both ends, interleaved with polling in random order.

use std::cell::RefCell;
use std::time::Duration;

use hvsock_virtio::{Closed, MessageEnd, SocketKind, shutdown};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::pair::{Pair, Setup};

const CASES: u32 = 100;

#[derive(Clone, Debug)]
pub enum Action {
    PollDevice(usize),
    PollGuest(usize),
    Pass(u64),
    ConnectFromGuest(SocketKind, u32),
    ConnectFromDevice(SocketKind),
    Answer { which: usize, accept: bool },
    GuestAccepts(bool),
    Buffers { guest: u32, device: u32 },
    GuestWrites(usize, u32, MessageEnd),
    GuestReads(usize, usize),
    GuestShuts(usize, u32),
    GuestCloses(usize),
    GuestGrows(usize, u32),
    DeviceWrites(usize, usize, MessageEnd),
    DeviceReads(usize, usize),
    DeviceFinishes(usize),
    DeviceShutsRead(usize),
    DeviceCloses(usize),
    DeviceResets(usize),
}

fn kind() -> impl Strategy<Value = SocketKind> {
    prop_oneof![Just(SocketKind::Stream), Just(SocketKind::Seqpacket)]
}

pub fn action() -> impl Strategy<Value = Action> {
    use Action::*;
    let which = || 0..64usize;
    let len = || prop_oneof![3 => 1..100usize, 3 => 1..5000usize, 1 => 1..200_000usize];
    let end = || {
        let message = prop_oneof![3 => Just(true), 1 => Just(false)];
        (message, any::<bool>()).prop_map(|(message, record)| MessageEnd {
            message,
            record: message && record,
        })
    };
    let packets = || prop_oneof![1..4usize, Just(1000)];
    let size = || prop_oneof![Just(1024u32), 1024..70_000u32, Just(256 * 1024)];
    prop_oneof![
        20 => packets().prop_map(PollDevice),
        20 => packets().prop_map(PollGuest),
        1 => (0..3000u64).prop_map(Pass),
        6 => (kind(), 100..120u32).prop_map(|(kind, port)| ConnectFromGuest(kind, port)),
        4 => kind().prop_map(ConnectFromDevice),
        8 => (which(), prop::bool::weighted(0.9))
            .prop_map(|(which, accept)| Answer { which, accept }),
        1 => prop::bool::weighted(0.8).prop_map(GuestAccepts),
        2 => (size(), size()).prop_map(|(guest, device)| Buffers { guest, device }),
        20 => (which(), len(), end()).prop_map(|(it, len, end)| GuestWrites(it, len as u32, end)),
        20 => (which(), len()).prop_map(|(it, len)| GuestReads(it, len)),
        1 => (which(), 1..=3u32).prop_map(|(it, bits)| GuestShuts(it, bits)),
        2 => (which(), Just(shutdown::SEND)).prop_map(|(it, bits)| GuestShuts(it, bits)),
        2 => which().prop_map(GuestCloses),
        1 => (which(), 1..9000u32).prop_map(|(it, by)| GuestGrows(it, by)),
        20 => (which(), len(), end()).prop_map(|(it, len, end)| DeviceWrites(it, len, end)),
        20 => (which(), len()).prop_map(|(it, len)| DeviceReads(it, len)),
        2 => which().prop_map(DeviceFinishes),
        1 => which().prop_map(DeviceShutsRead),
        2 => which().prop_map(DeviceCloses),
        1 => which().prop_map(DeviceResets),
    ]
}

pub fn setup() -> impl Strategy<Value = Setup> {
    let near_the_wraparound = (0..200_000u32).prop_map(u32::wrapping_neg);
    (
        prop_oneof![Just(0), near_the_wraparound],
        prop_oneof![Just(3732usize), Just(65_536), 1..200usize],
        prop_oneof![1..4usize, Just(128)],
        prop_oneof![1..4usize, Just(128)],
        prop_oneof![Just(3usize), Just(1000)],
        1..4usize,
    )
        .prop_map(
            |(first_count, buffer_len, rx, tx, max_connections, max_replies)| Setup {
                first_count,
                buffer_len,
                rx,
                tx,
                max_connections,
                max_replies,
            },
        )
}

/// One of an end's flows; `usize::MAX` if it has none.
fn pick<T>(flows: &std::collections::BTreeMap<usize, T>, which: usize) -> usize {
    let len = flows.len().max(1);
    flows.keys().nth(which % len).copied().unwrap_or(usize::MAX)
}

pub fn act(pair: &mut Pair, action: &Action) {
    let now = pair.now;
    let flows = &mut pair.flows;
    let socket = |which| pick(&pair.guest.sockets, which);
    let link = |which| pick(&pair.device.links, which);
    match *action {
        Action::PollDevice(packets) => _ = pair.poll_device(packets),
        Action::PollGuest(packets) => _ = pair.poll_guest(packets),
        Action::Pass(millis) => pair.pass(Duration::from_millis(millis)),
        Action::ConnectFromGuest(kind, port) => _ = pair.connect_from_guest(kind, port),
        Action::ConnectFromDevice(kind) => _ = pair.connect_from_device(kind),
        Action::Answer { which, accept } => pair.device.answer(flows, which, accept),
        Action::GuestAccepts(accepts) => pair.guest.accepts = accepts,
        Action::Buffers { guest, device } => {
            pair.guest.buffer = guest;
            pair.device.alloc = device;
        }
        Action::GuestWrites(which, len, end) => {
            let flow = socket(which);
            pair.guest.write(flows, flow, len, end);
        }
        Action::GuestReads(which, len) => {
            let flow = socket(which);
            pair.read_at_guest(flow, len);
        }
        Action::GuestShuts(which, bits) => pair.guest.shut_down(flows, socket(which), bits),
        Action::GuestCloses(which) => pair.guest.close(now, flows, socket(which)),
        Action::GuestGrows(which, by) => pair.guest.grow(socket(which), by),
        Action::DeviceWrites(which, len, end) => {
            let flow = link(which);
            let longest = pair.guest.longest_message(flow, pair.setup.buffer_len);
            pair.device.write(flows, flow, len, end.record, longest);
        }
        Action::DeviceReads(which, len) => {
            let flow = link(which);
            pair.read_at_device(flow, len);
        }
        Action::DeviceFinishes(which) => pair.device.finish(now, flows, link(which)),
        Action::DeviceShutsRead(which) => pair.device.close_read(flows, link(which)),
        Action::DeviceCloses(which) => pair.device.close(now, flows, link(which)),
        Action::DeviceResets(which) => pair.device.reset(flows, link(which)),
    }
}

/// What the cases covered, to assert that they covered enough.
#[derive(Debug, Default)]
struct Coverage {
    cases: usize,
    flows: usize,
    bytes: [u64; 2],
    ends: [usize; 2],
    closed: std::collections::BTreeMap<String, usize>,
}

#[test]
fn every_byte_arrives_once_and_in_order_whatever_both_ends_do() {
    let coverage = RefCell::new(Coverage::default());
    let input = (setup(), vec(action(), 1..400), any::<u64>());
    let run = |(setup, actions, closers): (Setup, Vec<Action>, u64)| {
        let mut pair = Pair::new(setup);
        for action in &actions {
            act(&mut pair, action);
        }
        pair.settle();
        pair.assert_all_is_read();
        let mut closers = (0..u64::BITS).cycle().map(|bit| closers >> bit & 1 == 1);
        pair.end(|| closers.next().unwrap_or_default());
        coverage.borrow_mut().count(&pair);
        Ok(())
    };
    let mut runner = TestRunner::new(Config {
        failure_persistence: None,
        max_shrink_iters: 20_000,
        cases: crate::cases(CASES),
        ..Config::default()
    });
    if let Err(failure) = runner.run(&input, run) {
        panic!("{failure}");
    }
    let coverage = coverage.into_inner();
    println!("{coverage:#?}");
    if coverage.cases >= CASES as usize {
        assert!(coverage.bytes.iter().all(|bytes| *bytes > 300_000));
        assert!(coverage.ends.iter().all(|ends| *ends > 20));
        for reason in [
            Closed::Clean,
            Closed::Refused,
            Closed::Reset,
            Closed::TimedOut,
        ] {
            assert!(
                coverage.closed.contains_key(&format!("{reason:?}")),
                "never {reason:?}"
            );
        }
    }
}

impl Coverage {
    fn count(&mut self, pair: &Pair) {
        self.cases += 1;
        for flow in pair.flows.all() {
            self.flows += 1;
            for (at, stream) in [&flow.to_device, &flow.to_guest].into_iter().enumerate() {
                self.bytes[at] += stream.read;
                self.ends[at] += usize::from(stream.is_at_end && stream.read > 0);
            }
        }
        for (_, reason) in &pair.device.closed {
            *self.closed.entry(format!("{reason:?}")).or_default() += 1;
        }
    }
}
