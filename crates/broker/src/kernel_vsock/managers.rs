//! The states of VMs as their managers (libvirt, machined, Incus) say: the kernel does not know whether a VM
//! runs. One thread asks each manager for all of its VMs, every two seconds. A manager that does not answer
//! leaves its VMs unknown.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use hvsock_control::ManagerRef;
use hvsock_discover::{Machine, ManagerKind, Reach, State as Seen};
use hvsock_fabric::PartitionState;
use hvsock_sys::sync::lock;

use crate::guest_link::{EventSender, LinkEvent};
use crate::sandbox;

/// How often the managers are asked.
const INTERVAL: Duration = Duration::from_secs(2);
/// How long one manager may take.
const LIMIT: Duration = Duration::from_secs(2);

/// What asks a manager. `None` if it does not answer.
type Ask = dyn Fn(ManagerKind) -> Option<Vec<Machine>> + Send + Sync;

/// The VMs of a broker whose managers are asked.
#[derive(Clone)]
pub(super) struct Managers(Arc<Shared>);

struct Shared {
    ask: Box<Ask>,
    interval: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    watched: HashMap<u64, Watched>,
    next: u64,
    runs: bool,
    /// One was added since the managers were asked.
    is_new: bool,
}

struct Watched {
    kind: ManagerKind,
    vm: String,
    cid: u32,
    events: EventSender,
    told: Option<PartitionState>,
    /// Nothing is told for now.
    is_held: bool,
}

/// One VM whose manager is asked until this is dropped.
pub(super) struct Watch {
    shared: Arc<Shared>,
    number: u64,
}

impl Default for Managers {
    fn default() -> Self {
        let ask = |kind| {
            let manager = hvsock_discover::manager(kind);
            manager.list(Instant::now() + LIMIT).ok()
        };
        Self::new(ask, INTERVAL)
    }
}

impl Managers {
    fn new(
        ask: impl Fn(ManagerKind) -> Option<Vec<Machine>> + Send + Sync + 'static,
        interval: Duration,
    ) -> Self {
        Self(Arc::new(Shared {
            ask: Box::new(ask),
            interval,
            state: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// Asks a VM's manager from now on, and sends the states of the VM.
    ///
    /// # Errors
    ///
    /// If there is no manager of this name, or no thread can be started.
    pub(super) fn watch(
        &self,
        manager: &ManagerRef,
        cid: u32,
        events: EventSender,
    ) -> io::Result<Watch> {
        self.watch_from((None, false), manager, cid, events)
    }

    /// The same for a VM of which this was told in another process, held until [`Watch::hold`].
    ///
    /// # Errors
    ///
    /// As [`watch`](Self::watch).
    pub(super) fn resume(
        &self,
        told: Option<PartitionState>,
        manager: &ManagerRef,
        cid: u32,
        events: EventSender,
    ) -> io::Result<Watch> {
        self.watch_from((told, true), manager, cid, events)
    }

    fn watch_from(
        &self,
        (told, is_held): (Option<PartitionState>, bool),
        manager: &ManagerRef,
        cid: u32,
        events: EventSender,
    ) -> io::Result<Watch> {
        let kind = ManagerKind::named(&manager.manager).ok_or_else(|| {
            let text = format!("no manager has the name {:?}", manager.manager);
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
        let mut state = lock(&self.0.state);
        if !state.runs {
            let shared = Arc::clone(&self.0);
            let thread = std::thread::Builder::new().name("vm-managers".into());
            // It ends by itself: a manager that is slow must not keep a VM from being removed.
            sandbox::outside(|| thread.spawn(move || shared.run()))?;
            state.runs = true;
        }
        let number = state.next;
        state.next += 1;
        state.is_new = true;
        state.watched.insert(
            number,
            Watched {
                kind,
                vm: manager.vm.clone(),
                cid,
                events,
                told,
                is_held,
            },
        );
        self.0.changed.notify_all();
        let shared = Arc::clone(&self.0);
        Ok(Watch { shared, number })
    }
}

impl Watch {
    /// Has nothing be told from now on, or the state that its manager says now.
    pub(super) fn hold(&self, is_held: bool) {
        let mut state = lock(&self.shared.state);
        if let Some(vm) = state.watched.get_mut(&self.number) {
            vm.is_held = is_held;
        }
        state.is_new |= !is_held;
        self.shared.changed.notify_all();
    }

    /// The state that was told last.
    pub(super) fn told(&self) -> Option<PartitionState> {
        lock(&self.shared.state).watched.get(&self.number)?.told
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        lock(&self.shared.state).watched.remove(&self.number);
        self.shared.changed.notify_all();
    }
}

impl Shared {
    /// Asks until no VM is left.
    fn run(&self) {
        loop {
            let kinds: Vec<ManagerKind> = {
                let mut state = lock(&self.state);
                state.is_new = false;
                if state.watched.is_empty() {
                    state.runs = false;
                    return;
                }
                let known = |kind: &ManagerKind| {
                    let mut watched = state.watched.values();
                    watched.any(|vm| vm.kind == *kind && !vm.is_held)
                };
                ManagerKind::ALL.into_iter().filter(known).collect()
            };
            for kind in kinds {
                let machines = (self.ask)(kind);
                for vm in lock(&self.state).watched.values_mut() {
                    if vm.kind == kind && !vm.is_held {
                        vm.tell(machines.as_deref());
                    }
                }
            }
            let state = lock(&self.state);
            let parked = |state: &mut State| !state.is_new && !state.watched.is_empty();
            let waited = self
                .changed
                .wait_timeout_while(state, self.interval, parked);
            drop(waited);
        }
    }
}

impl Watched {
    fn tell(&mut self, machines: Option<&[Machine]>) {
        let state = match machines {
            None => PartitionState::Unknown,
            Some(machines) => state_of(machines, &self.vm, self.cid),
        };
        if self.told != Some(state) {
            self.told = Some(state);
            self.events.send(LinkEvent::State(state));
        }
    }
}

/// The state of the VM with this name or UUID. It is off for the broker if it runs with another CID: the CID
/// is then of nobody, or of another VM.
fn state_of(machines: &[Machine], vm: &str, cid: u32) -> PartitionState {
    let is_it = |machine: &&Machine| {
        let is_named = machine.name == vm || machine.uuid.as_deref() == Some(vm);
        let has_cid =
            |way: &Reach| matches!(way, Reach::Kernel { cid: other, .. } if *other == cid);
        is_named && machine.state != Seen::Off && machine.reach.iter().any(has_cid)
    };
    match machines.iter().find(is_it).map(|machine| machine.state) {
        Some(Seen::Running) => PartitionState::Running,
        Some(Seen::Paused) => PartitionState::Paused,
        Some(Seen::Unknown) => PartitionState::Unknown,
        Some(Seen::Off) | None => PartitionState::Off,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver};

    use super::*;
    use crate::data_path::ReportSender;

    fn machine(name: &str, state: Seen, cid: u32) -> Machine {
        Machine {
            manager: ManagerKind::Libvirt,
            name: name.to_owned(),
            uuid: Some("0b2f1f0e-0000-4000-8000-000000000001".to_owned()),
            state,
            pid: None,
            uid: None,
            reach: vec![Reach::Kernel { cid, netns: None }],
        }
    }

    #[test]
    fn a_vm_has_its_managers_state_only_while_it_has_the_cid() {
        let machines = [
            machine("web", Seen::Paused, 42),
            machine("db", Seen::Running, 43),
            machine("old", Seen::Off, 44),
        ];
        for (vm, cid, state) in [
            ("web", 42, PartitionState::Paused),
            ("db", 43, PartitionState::Running),
            // By its UUID, which they share here.
            (
                "0b2f1f0e-0000-4000-8000-000000000001",
                43,
                PartitionState::Running,
            ),
            // Another VM has inherited the CID.
            ("web", 43, PartitionState::Off),
            ("old", 44, PartitionState::Off),
            ("unknown", 42, PartitionState::Off),
        ] {
            assert_eq!(state_of(&machines, vm, cid), state, "{vm} {cid}");
        }
    }

    fn next(events: &Receiver<LinkEvent>) -> PartitionState {
        match events.recv_timeout(Duration::from_secs(20)) {
            Ok(LinkEvent::State(state)) => state,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn changes_of_a_managers_answers_are_reported_once_each() {
        let answers = Arc::new(Mutex::new(Some(vec![machine("web", Seen::Running, 42)])));
        let said = Arc::clone(&answers);
        let managers = Managers::new(move |_| lock(&said).clone(), Duration::from_millis(5));
        let (sender, events) = mpsc::channel();
        let sender = ReportSender::new(move |event| {
            let _ = sender.send(event);
        });
        let web = ManagerRef {
            manager: "libvirt".to_owned(),
            vm: "web".to_owned(),
        };
        let watch = managers.watch(&web, 42, sender).unwrap();
        assert_eq!(next(&events), PartitionState::Running);
        *lock(&answers) = Some(Vec::new());
        assert_eq!(next(&events), PartitionState::Off);
        *lock(&answers) = None;
        assert_eq!(next(&events), PartitionState::Unknown);
        drop(watch);
        assert!(events.recv().is_err(), "the thread lets go of it");
        let other = ManagerRef {
            manager: "sorcery".to_owned(),
            ..web
        };
        assert!(
            managers
                .watch(&other, 42, ReportSender::new(|_| ()))
                .is_err()
        );
    }
}
