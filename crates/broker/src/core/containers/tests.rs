//! The run state of containers, and which container of a runtime has which place.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const IDS: [&str; 3] = ["a1", "b2", "c3"];

fn partition(number: u32) -> PartitionKey {
    PartitionKey::from_u64(number.into())
}

fn process(pid: u32) -> ProcessId {
    ProcessId { pid, started: 7 }
}

fn one() -> (Containers, PartitionKey) {
    let (mut containers, key) = (Containers::default(), partition(1));
    containers.insert(key, false);
    (containers, key)
}

fn number(bound: Result<Option<BindingNumber>, BindError>) -> BindingNumber {
    bound.unwrap().unwrap()
}

#[test]
fn a_container_runs_from_its_binding_to_its_end_unless_its_runtime_or_an_operator_has_paused_it() {
    use PartitionState::{Defined, Exited, Paused, Running, Unknown};

    let (mut containers, key) = one();
    assert_eq!(containers.state(key), Some(Unknown));
    let binding = number(containers.bind(key, "a1", Some(process(10))));
    assert_eq!(containers.state(key), Some(Running));
    // Two causes of a pause: both must be gone.
    for (frozen, paused, want) in [
        (true, false, Paused),
        (true, true, Paused),
        (false, true, Paused),
        (false, false, Running),
    ] {
        assert!(containers.frozen(key, binding, frozen));
        containers.set_paused(key, paused);
        assert_eq!(containers.state(key), Some(want), "{frozen} {paused}");
        let record = containers.get(key).unwrap();
        assert_eq!(record.is_paused_by_operator(), paused);
    }
    containers.set_paused(key, true);
    assert!(containers.ended(key, binding));
    assert_eq!(containers.state(key), Some(Exited));
    assert_eq!(
        containers.release(key, "a1").map(|bound| bound.number),
        Some(binding)
    );
    assert_eq!(containers.state(key), Some(Defined));
    // The operator's pause holds for the next one.
    number(containers.bind(key, "a1", Some(process(11))));
    assert_eq!(containers.state(key), Some(Paused));
}

#[test]
fn a_second_container_is_refused_with_the_first_ones_id_until_that_has_ended() {
    let (mut containers, key) = one();
    let first = number(containers.bind(key, "a1", Some(process(10))));
    let error = containers.bind(key, "b2", Some(process(11))).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("a1") && text.contains("process 10"), "{text}");
    // The same id of another process: two runtimes may have one id each.
    assert!(containers.bind(key, "a1", Some(process(11))).is_err());
    assert!(containers.bind(key, "a1", None).is_err());
    // Its own hook again.
    assert_eq!(number(containers.bind(key, "a1", Some(process(10)))), first);
    // The hook of the second one after its failure does not release the first one.
    assert_eq!(containers.release(key, "b2"), None);
    assert!(containers.ended(key, first));
    let second = number(containers.bind(key, "b2", Some(process(11))));
    // What is still reported of the first one means nothing.
    assert!(!containers.ended(key, first) && !containers.frozen(key, first, true));
    assert_eq!(containers.release(key, "a1"), None);
    assert_eq!(containers.state(key), Some(PartitionState::Running));
    containers.forget(key, first);
    assert_eq!(containers.state(key), Some(PartitionState::Running));
    containers.forget(key, second);
    assert_eq!(containers.state(key), Some(PartitionState::Unknown));
}

#[test]
fn one_process_has_one_place() {
    let (mut containers, key) = one();
    let other = partition(2);
    containers.insert(other, true);
    let bound = number(containers.bind(key, "a1", Some(process(10))));
    assert_eq!(
        containers.bind(other, "a1", Some(process(10))),
        Err(BindError::Elsewhere(key))
    );
    // Two processes that this process cannot number may be one or two.
    number(containers.bind(other, "x", None));
    assert!(containers.ended(key, bound));
    number(containers.bind(key, "y", None));
}

#[test]
fn a_removed_container_has_no_state() {
    let (mut containers, key) = one();
    let bound = number(containers.bind(key, "a1", Some(process(10))));
    containers.remove(key);
    assert!(!containers.contains(key) && containers.state(key).is_none());
    assert!(!containers.ended(key, bound) && !containers.frozen(key, bound, true));
    assert_eq!(containers.bind(key, "a1", None), Ok(None));
    assert_eq!(containers.release(key, "a1"), None);
    containers.set_paused(key, true);
    containers.set_defined(key);
    assert!(containers.get(key).is_none());
}

/// What happens to one of three containers. Bindings are named by their order of making.
#[derive(Clone, Copy, Debug)]
enum Op {
    Bind { id: usize, pid: u32 },
    Release { id: usize },
    Ended { binding: usize },
    Frozen { binding: usize, frozen: bool },
    Pause(bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0..3usize, 0..4u32).prop_map(|(id, pid)| Op::Bind { id, pid }),
        2 => (0..3usize).prop_map(|id| Op::Release { id }),
        3 => (0..9usize).prop_map(|binding| Op::Ended { binding }),
        2 => (0..9usize, any::<bool>()).prop_map(|(binding, frozen)| Op::Frozen { binding, frozen }),
        1 => any::<bool>().prop_map(Op::Pause),
    ]
}

/// What was done to one container, in order.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Done {
    Bound { binding: usize, id: usize, pid: u32 },
    Released,
    Ended(usize),
    Frozen(usize, bool),
    Paused(bool),
}

/// The binding whose container is there, by reading the history backwards.
fn bound(history: &[Done]) -> Option<(usize, usize, u32)> {
    let last = history
        .iter()
        .rev()
        .find(|done| matches!(done, Done::Bound { .. } | Done::Released))?;
    match *last {
        Done::Bound { binding, id, pid } => Some((binding, id, pid)),
        _ => None,
    }
}

fn has_ended(history: &[Done], binding: usize) -> bool {
    history.contains(&Done::Ended(binding))
}

fn state(history: &[Done]) -> PartitionState {
    let was_bound = history
        .iter()
        .any(|done| matches!(done, Done::Bound { .. }));
    let paused = history.iter().rev().find_map(|done| match done {
        Done::Paused(paused) => Some(*paused),
        _ => None,
    });
    let paused = paused.unwrap_or(false);
    let Some((binding, ..)) = bound(history) else {
        return match (was_bound, paused) {
            (true, _) => PartitionState::Defined,
            (false, true) => PartitionState::Paused,
            (false, false) => PartitionState::Unknown,
        };
    };
    let frozen = history.iter().rev().find_map(|done| match done {
        Done::Frozen(of, frozen) if *of == binding => Some(*frozen),
        _ => None,
    });
    match (
        has_ended(history, binding),
        frozen.unwrap_or(false) || paused,
    ) {
        (true, _) => PartitionState::Exited,
        (false, true) => PartitionState::Paused,
        (false, false) => PartitionState::Running,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Any order of what hooks, observers and operators say gives the states that the history says.
    #[test]
    fn the_state_follows_from_the_history(ops in vec((0..3usize, op()), 1..80)) {
        let mut containers = Containers::default();
        let mut histories: [Vec<Done>; 3] = Default::default();
        let mut numbers = Vec::new();
        for key in 0..3 {
            containers.insert(partition(key), false);
        }
        for (at, op) in ops {
            let key = partition(at as u32);
            match op {
                Op::Bind { id, pid } => {
                    // Process 0 is one that has no number here.
                    let process = (pid != 0).then(|| process(pid));
                    let elsewhere = (0..3).find(|other| {
                        let there = bound(&histories[*other]);
                        *other != at && pid != 0 && there.is_some_and(|(binding, _, its)| {
                            its == pid && !has_ended(&histories[*other], binding)
                        })
                    });
                    let own = bound(&histories[at])
                        .filter(|(binding, ..)| !has_ended(&histories[at], *binding));
                    let got = containers.bind(key, IDS[id], process);
                    match (elsewhere, own) {
                        (Some(other), _) => {
                            prop_assert_eq!(got, Err(BindError::Elsewhere(partition(other as u32))));
                        }
                        (None, Some((binding, its, of))) if (its, of) == (id, pid) && pid != 0 => {
                            prop_assert_eq!(got, Ok(Some(numbers[binding])));
                        }
                        (None, Some((_, its, _))) => match got {
                            Err(BindError::Taken { oci_id, .. }) => prop_assert_eq!(oci_id, IDS[its]),
                            other => prop_assert!(false, "{:?}", other),
                        },
                        (None, None) => {
                            let number = got.unwrap().unwrap();
                            prop_assert!(!numbers.contains(&number));
                            let binding = numbers.len();
                            numbers.push(number);
                            histories[at].push(Done::Bound { binding, id, pid });
                        }
                    }
                }
                Op::Release { id } => {
                    let is_its = bound(&histories[at]).is_some_and(|(_, its, _)| its == id);
                    prop_assert_eq!(containers.release(key, IDS[id]).is_some(), is_its);
                    if is_its {
                        histories[at].push(Done::Released);
                    }
                }
                Op::Ended { binding } | Op::Frozen { binding, .. } => {
                    let Some(number) = numbers.get(binding) else { continue };
                    let is_present = bound(&histories[at]).is_some_and(|(now, ..)| now == binding);
                    let (told, done) = match op {
                        Op::Frozen { frozen, .. } => {
                            (containers.frozen(key, *number, frozen), Done::Frozen(binding, frozen))
                        }
                        _ => (containers.ended(key, *number), Done::Ended(binding)),
                    };
                    prop_assert_eq!(told, is_present);
                    if is_present {
                        histories[at].push(done);
                    }
                }
                Op::Pause(paused) => {
                    containers.set_paused(key, paused);
                    histories[at].push(Done::Paused(paused));
                }
            }
            for (key, history) in histories.iter().enumerate() {
                let want = state(history);
                prop_assert_eq!(containers.state(partition(key as u32)), Some(want));
            }
        }
    }
}
