//! Random changes of what is wanted, and of what other processes hold, against the rules of the table.

use std::cell::RefCell;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;

/// The kernel: which ports have a socket, and whether it listens.
#[derive(Clone, Default)]
struct Kernel(Rc<RefCell<State>>);

#[derive(Default)]
struct State {
    own: BTreeMap<u32, bool>,
    squatters: BTreeSet<u32>,
    /// Listening fails with these.
    mute: BTreeSet<u32>,
    binds: usize,
}

struct Socket {
    kernel: Kernel,
    port: u32,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.kernel.0.borrow_mut().own.remove(&self.port);
    }
}

impl PortIo for Kernel {
    type Socket = Socket;

    fn bind(&mut self, port: u32) -> Result<Socket, PortFault> {
        let mut state = self.0.borrow_mut();
        state.binds += 1;
        if port < 2 {
            return Err(PortFault::Privileged);
        }
        assert!(!state.own.contains_key(&port), "port {port} is bound twice");
        if state.squatters.contains(&port) {
            return Err(PortFault::InUse);
        }
        state.own.insert(port, false);
        let kernel = self.clone();
        drop(state);
        Ok(Socket { kernel, port })
    }

    fn listen(&mut self, port: u32, _: &Socket) -> Result<(), PortFault> {
        let mut state = self.0.borrow_mut();
        if state.mute.contains(&port) {
            return Err(PortFault::System(12));
        }
        state.own.insert(port, true);
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Op {
    Want(BTreeMap<u32, bool>),
    Squat(u32),
    Leave(u32),
    Mute(u32),
    Unmute(u32),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let port = || 0..6_u32;
    prop_oneof![
        4 => proptest::collection::btree_map(port(), any::<bool>(), 0..6).prop_map(Op::Want),
        2 => port().prop_map(Op::Squat),
        2 => port().prop_map(Op::Leave),
        1 => port().prop_map(Op::Mute),
        1 => port().prop_map(Op::Unmute),
        3 => (0..40_000_u64).prop_map(Op::Pass),
    ]
}

fn wanted(ports: &BTreeMap<u32, bool>) -> BTreeMap<u32, Wanted> {
    let kind = |listens: bool| match listens {
        true => Wanted::Listening,
        false => Wanted::Bound,
    };
    ports
        .iter()
        .map(|(port, listens)| (*port, kind(*listens)))
        .collect()
}

fn check(ports: &Ports<Socket>, kernel: &Kernel, want: &BTreeMap<u32, bool>) {
    let state = kernel.0.borrow();
    for (port, listens) in want {
        match ports.fault(*port) {
            None => assert_eq!(state.own.get(port), Some(listens), "port {port}"),
            // Nothing listens that is not wanted to, also while something is in the way.
            Some(_) => assert!(!state.own.get(port).is_some_and(|held| *held && !listens)),
        }
    }
    for port in state.own.keys() {
        assert!(
            want.contains_key(port),
            "port {port} is held and not wanted"
        );
    }
    for port in 0..6 {
        let listens = state.own.get(&port) == Some(&true);
        assert_eq!(ports.listener(port).is_some(), listens, "port {port}");
        assert!(want.contains_key(&port) || ports.fault(port).is_none());
    }
}

proptest! {
    #[test]
    fn ports_are_what_is_wanted_unless_something_is_in_the_way(ops in proptest::collection::vec(op(), 1..60)) {
        let (mut kernel, mut ports) = (Kernel::default(), Ports::new(MAX_PORTS));
        let mut now = Instant::now();
        let (mut want, mut faults) = (BTreeMap::new(), BTreeMap::new());
        for op in ops {
            match op {
                Op::Want(new) => {
                    ports.set_wanted(&mut kernel, &wanted(&new), now);
                    want = new;
                }
                Op::Squat(port) => {
                    let mut state = kernel.0.borrow_mut();
                    if !state.own.contains_key(&port) {
                        state.squatters.insert(port);
                    }
                }
                Op::Leave(port) => {
                    kernel.0.borrow_mut().squatters.remove(&port);
                }
                Op::Mute(port) => {
                    kernel.0.borrow_mut().mute.insert(port);
                }
                Op::Unmute(port) => {
                    kernel.0.borrow_mut().mute.remove(&port);
                }
                Op::Pass(ms) => {
                    now += Duration::from_millis(ms);
                    ports.retry(&mut kernel, now);
                }
            }
            check(&ports, &kernel, &want);
            // Exactly the changes of faults are reported.
            for port in ports.take_changed() {
                prop_assert_ne!(faults.remove(&port), ports.fault(port));
                if let Some(fault) = ports.fault(port) {
                    faults.insert(port, fault);
                }
            }
            for port in 0..6 {
                prop_assert_eq!(faults.get(&port).copied(), ports.fault(port));
            }
            if let Some(at) = ports.next_retry() {
                prop_assert!(at <= now + LAST_RETRY);
            }
        }
        // In the end all is well, except what no retry can change.
        kernel.0.borrow_mut().squatters.clear();
        kernel.0.borrow_mut().mute.clear();
        ports.retry(&mut kernel, now + LAST_RETRY);
        for port in want.keys() {
            prop_assert_eq!(ports.fault(*port).is_some(), *port < 2);
        }
        ports.set_wanted(&mut kernel, &BTreeMap::new(), now);
        prop_assert!(kernel.0.borrow().own.is_empty());
        prop_assert_eq!(ports.next_retry(), None);
    }
}

#[test]
fn a_port_in_use_is_tried_again_with_a_growing_wait() {
    let (mut kernel, mut ports) = (Kernel::default(), Ports::new(MAX_PORTS));
    let start = Instant::now();
    kernel.0.borrow_mut().squatters.insert(5);
    ports.set_wanted(&mut kernel, &[(5, Wanted::Listening)].into(), start);
    let (mut now, mut waits) = (start, Vec::new());
    for _ in 0..8 {
        let at = ports.next_retry().unwrap();
        waits.push((at - now).as_millis());
        now = at;
        ports.retry(&mut kernel, now);
    }
    assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]);
    // Another change does not try it earlier, a change of this port does.
    let binds = kernel.0.borrow().binds;
    ports.set_wanted(
        &mut kernel,
        &[(5, Wanted::Listening), (6, Wanted::Bound)].into(),
        now,
    );
    assert_eq!(kernel.0.borrow().binds, binds + 1);
    kernel.0.borrow_mut().squatters.clear();
    ports.set_wanted(
        &mut kernel,
        &[(5, Wanted::Bound), (6, Wanted::Bound)].into(),
        now,
    );
    assert_eq!(ports.fault(5), None);
}

#[test]
fn ports_that_are_listened_to_come_first_if_there_are_too_many() {
    let (mut kernel, mut ports) = (Kernel::default(), Ports::new(MAX_PORTS));
    let now = Instant::now();
    let count = u32::try_from(MAX_PORTS).unwrap();
    let mut want: BTreeMap<u32, Wanted> =
        (10..10 + count).map(|port| (port, Wanted::Bound)).collect();
    ports.set_wanted(&mut kernel, &want, now);
    assert_eq!(ports.take_changed(), BTreeSet::new());
    want.insert(60_000, Wanted::Listening);
    ports.set_wanted(&mut kernel, &want, now);
    assert!(ports.listener(60_000).is_some());
    assert_eq!(ports.take_changed(), [9 + count].into());
    assert_eq!(ports.fault(9 + count), Some(PortFault::TooMany));
    assert_eq!(kernel.0.borrow().own.len(), MAX_PORTS);
    // A port is free: the one that was left out is bound again.
    want.remove(&10);
    ports.set_wanted(&mut kernel, &want, now);
    assert_eq!(ports.fault(9 + count), None);
    assert_eq!(ports.take_changed(), [9 + count].into());
}
