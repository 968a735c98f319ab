//! The keys of Windows, over a fake of its registry that several stores share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hvsock_registry::keys::{
    KeyBackend, KeyError, KeyLocation, KeyRegistrations, KeyStep, LeaseHolder, ProcessState,
    RawKey, Snapshot, Store,
};
use hvsock_registry::store::RegistrationStore;
use hvsock_testkit::registration_store::{Capabilities, Storage};

#[path = "../../src/keys/tests/fake.rs"]
mod fake;

use fake::Fake;

/// The process that holds leases.
const PROCESS: u32 = 7;

/// A fake registry. Clones share it.
#[derive(Clone)]
pub struct FakeKeys {
    keys: Arc<Mutex<Fake>>,
    locked: Arc<AtomicBool>,
}

impl FakeKeys {
    pub fn new() -> Self {
        let mut fake = Fake {
            current_pid: PROCESS,
            ..Fake::default()
        };
        fake.processes.insert(PROCESS, 1);
        Self {
            keys: Arc::new(Mutex::new(fake)),
            locked: Arc::default(),
        }
    }

    fn keys(&self) -> MutexGuard<'_, Fake> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The held write lock.
pub struct FakeGuard(Arc<AtomicBool>);

impl Drop for FakeGuard {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl KeyBackend for FakeKeys {
    type Guard = FakeGuard;

    fn lock(&mut self) -> Result<FakeGuard, KeyError> {
        while self.locked.swap(true, Ordering::Acquire) {
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(FakeGuard(Arc::clone(&self.locked)))
    }

    fn read(&self) -> Result<Snapshot, KeyError> {
        self.keys().read()
    }

    fn apply(&mut self, step: &KeyStep) -> Result<(), KeyError> {
        self.keys().apply(step)
    }

    fn process_state(&self, process: u32) -> ProcessState {
        self.keys().process_state(process)
    }

    fn current_process(&self) -> Result<LeaseHolder, KeyError> {
        self.keys().current_process()
    }
}

impl Storage for FakeKeys {
    fn open(&self) -> Box<dyn RegistrationStore> {
        Box::new(KeyRegistrations::new(Store::new(self.clone())))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            rules: false,
            leases: true,
        }
    }
}
