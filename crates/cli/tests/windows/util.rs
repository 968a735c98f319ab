//! Commands to run, and services in the machine's registry that go when a test does.

#[path = "../done/mod.rs"]
mod done;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hvsock_address::{ServiceId, ServiceRef};
use hvsock_registry::key_store::{KeyStore, SERVICES};
use hvsock_testkit::process;
use serde_json::Value;
use windows_registry::LOCAL_MACHINE;

pub use done::Done;

/// Longer than anything takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The command's program, which for a test over the shim is one that takes that.
pub fn program() -> PathBuf {
    match std::env::var_os("HVSOCK_TEST_SHIM") {
        Some(folder) => Path::new(&folder).join("hvsock.exe"),
        None => env!("CARGO_BIN_EXE_hvsock").into(),
    }
}

/// The command, without what the environment of the test run says.
pub fn hvsock() -> Command {
    let mut command = Command::new(program());
    for name in ["NO_COLOR", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    command
}

pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Done {
    run_with(arguments, b"")
}

/// With this on its standard input.
pub fn run_with<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>, input: &[u8]) -> Done {
    let mut command = hvsock();
    let output = process::output(command.args(arguments), input, PATIENCE);
    output.unwrap().into()
}

/// One registry for all tests: one at a time changes it, and knows what is there.
static REGISTRY: Mutex<()> = Mutex::new(());

/// The machine's registry, to itself, without services of tests before and after.
pub struct World {
    /// In every name.
    mark: String,
    _alone: MutexGuard<'static, ()>,
}

impl World {
    pub fn new() -> Self {
        let alone = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = ServiceId::random().to_string()[..8].to_owned();
        Self {
            mark,
            _alone: alone,
        }
    }

    /// A name that nobody else has.
    pub fn name(&self, name: &str) -> String {
        format!("{name} {}", self.mark)
    }

    /// A name's service, at a port that nobody else has.
    pub fn port(&self) -> u32 {
        // Not among the ports that people give.
        0x4000_0000 | u32::from_str_radix(&self.mark, 16).unwrap() >> 4
    }

    pub fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        run(arguments).ok()
    }

    /// What a command with `--json` prints.
    pub fn json<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Value {
        let text = self.ok(arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    pub fn show(&self, service: &str) -> Value {
        self.json(["service", "show", service, "--json"])
    }

    /// Registers a service; its GUID.
    pub fn register(&self, name: &str) -> String {
        self.ok(["service", "register", name]).trim().to_owned()
    }

    /// This test's services, as a list of them has them.
    pub fn services(&self) -> Vec<Value> {
        let list = self.json(["service", "list", "--json"]);
        let ours = list.as_array().unwrap().iter().filter(|service| {
            let name = service["name"].as_str().unwrap();
            name.contains(&self.mark)
        });
        ours.cloned().collect()
    }

    /// Whether Windows itself has the service: a key by its GUID.
    pub fn windows_has(&self, id: &str) -> bool {
        let key = format!("{SERVICES}\\{id}");
        LOCAL_MACHINE.open(key).is_ok()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let Ok(mut store) = KeyStore::open() else {
            return;
        };
        let Ok(listing) = store.read() else { return };
        let is_ours = |name: &str| name.contains(&self.mark);
        for service in listing
            .registry
            .iter()
            .filter(|one| is_ours(one.name.as_str()))
        {
            let _ = store.remove(service.id);
        }
    }
}

/// Starts a command that runs until it is told to end.
pub fn start(command: &mut Command) -> process::Running {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    process::Running::start(command.stderr(Stdio::piped())).unwrap()
}

/// The GUID in a text form of its own: without it being parsed, nothing is said about case.
pub fn id_of(text: &str) -> ServiceId {
    match text.parse::<ServiceRef>().unwrap() {
        ServiceRef::Id(id) => id,
        other @ ServiceRef::Name(_) => panic!("{other} is no GUID"),
    }
}
