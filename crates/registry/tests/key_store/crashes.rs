//! Crashes of writers, on the real registry.

use hvsock_registry::Registration;
use hvsock_registry::keys::{
    KeyBackend, KeyError, KeyStep, LeaseHolder, ProcessState, STAGE, Snapshot, Store,
};

use super::*;

/// The system's registry. It crashes after a number of steps.
struct Crashing {
    keys: LocalMachineBackend,
    steps_left: usize,
}

impl KeyBackend for Crashing {
    type Guard = <LocalMachineBackend as KeyBackend>::Guard;

    fn lock(&mut self) -> Result<Self::Guard, KeyError> {
        self.keys.lock()
    }

    fn read(&self) -> Result<Snapshot, KeyError> {
        self.keys.read()
    }

    fn apply(&mut self, step: &KeyStep) -> Result<(), KeyError> {
        self.steps_left = self.steps_left.checked_sub(1).ok_or(KeyError::Busy(0))?;
        self.keys.apply(step)
    }

    fn process_state(&self, process: u32) -> ProcessState {
        self.keys.process_state(process)
    }

    fn current_process(&self) -> Result<LeaseHolder, KeyError> {
        self.keys.current_process()
    }
}

/// The services that Windows would let guests reach, with `ElementName`.
fn honoured(scratch: &Scratch) -> Vec<(String, Option<String>)> {
    let [mut live, _] = scratch.keys();
    live.retain(|name| name != STAGE);
    live.sort();
    let named = live.into_iter().map(|name| {
        let key = open(&format!(r"{}\{name}", scratch.services())).unwrap();
        let value = key.get_string("ElementName").ok();
        (name.to_uppercase(), value)
    });
    named.collect()
}

#[test]
fn a_crash_after_any_step_leaves_the_old_or_the_new_state() {
    let (on, off, new) = (new_service("On"), new_service("Off"), new_service("New"));
    let lease = Registration {
        lease: true,
        ..new.clone()
    };
    type Change<'a> = &'a dyn Fn(&mut Store<Crashing>) -> Result<(), KeyError>;
    let changes: [(&str, Change<'_>); 6] = [
        ("put", &|store| store.put(&new)),
        ("lease", &|store| store.put(&lease)),
        ("disable", &|store| store.set_enabled(on.id, false)),
        ("enable", &|store| store.set_enabled(off.id, true)),
        ("remove", &|store| store.remove(on.id)),
        ("remove off", &|store| store.remove(off.id)),
    ];
    let fresh = || {
        let scratch = Scratch::new();
        let mut store = scratch.store();
        store.put(&on).unwrap();
        store.put(&off).unwrap();
        store.set_enabled(off.id, false).unwrap();
        scratch
    };
    let perform = |scratch: &Scratch, change: Change<'_>, steps_left| {
        let keys = scratch.backend();
        change(&mut Store::new(Crashing { keys, steps_left }))
    };
    for (name, change) in changes {
        let (old, done) = (fresh(), fresh());
        perform(&done, change, usize::MAX).unwrap();
        let seen = |scratch: &Scratch| (scratch.read(), honoured(scratch));
        let (old, new) = (seen(&old), seen(&done));
        for steps in 0.. {
            let scratch = fresh();
            let result = perform(&scratch, change, steps);
            let now = seen(&scratch);
            assert!(now == old || now == new, "{name}, {steps} steps: {now:?}");
            // The next writer cleans up.
            scratch.store().put(&new_service("Next")).unwrap();
            let [live, parked] = scratch.keys();
            let mut left = live.iter().chain(&parked);
            assert!(left.all(|name| name != STAGE), "{name}, {steps} steps");
            if result.is_ok() {
                assert!(now == new && steps > 0, "{name}: {now:?}");
                break;
            }
        }
    }
}
