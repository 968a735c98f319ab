//! Commands to run, and services in the machine's registry that are removed at the end of a test.

#[path = "../completed/mod.rs"]
mod completed;

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

pub use completed::Completed;

/// The bound on every wait; longer than any operation takes on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// The command's program. Tests over the AF_HYPERV shim use one that is patched to load it.
pub fn program() -> PathBuf {
    match std::env::var_os("HVSOCK_TEST_SHIM") {
        Some(folder) => Path::new(&folder).join("hvsock.exe"),
        None => env!("CARGO_BIN_EXE_hvsock").into(),
    }
}

/// The command, without the variables of the test's own environment that change its behaviour.
pub fn hvsock() -> Command {
    let mut command = Command::new(program());
    for name in ["NO_COLOR", "CLICOLOR_FORCE"] {
        command.env_remove(name);
    }
    command
}

pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Completed {
    run_with(arguments, b"")
}

/// Runs the command with `input` on its stdin.
pub fn run_with<S: AsRef<OsStr>>(
    arguments: impl IntoIterator<Item = S>,
    input: &[u8],
) -> Completed {
    let mut command = hvsock();
    let output = process::output(command.args(arguments), input, TIMEOUT);
    output.unwrap().into()
}

/// Serializes the tests, because they share the machine's registry.
static REGISTRY: Mutex<()> = Mutex::new(());

/// Exclusive access to the machine's registry. The services of the test are removed on drop.
pub struct World {
    /// A random part of every name that the test registers.
    mark: String,
    _exclusive: MutexGuard<'static, ()>,
}

impl World {
    pub fn new() -> Self {
        let exclusive = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = ServiceId::random().to_string()[..8].to_owned();
        Self {
            mark,
            _exclusive: exclusive,
        }
    }

    /// A unique name.
    pub fn name(&self, name: &str) -> String {
        format!("{name} {}", self.mark)
    }

    /// A unique port.
    pub fn port(&self) -> u32 {
        // Above the ports that are usual.
        0x4000_0000 | u32::from_str_radix(&self.mark, 16).unwrap() >> 4
    }

    pub fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        run(arguments).ok()
    }

    /// Runs a command with `--json` that must succeed. Returns its output.
    pub fn json<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Value {
        let text = self.ok(arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    pub fn show(&self, service: &str) -> Value {
        self.json(["service", "show", service, "--json"])
    }

    /// Registers a service. Returns its GUID.
    pub fn register(&self, name: &str) -> String {
        self.ok(["service", "register", name]).trim().to_owned()
    }

    /// The services of this test, as `hvsock service list` lists them.
    pub fn services(&self) -> Vec<Value> {
        let list = self.json(["service", "list", "--json"]);
        let own = list.as_array().unwrap().iter().filter(|service| {
            let name = service["name"].as_str().unwrap();
            name.contains(&self.mark)
        });
        own.cloned().collect()
    }

    /// Whether Windows has the service: a key with its GUID as name.
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
        let is_own = |name: &str| name.contains(&self.mark);
        for service in listing
            .registry
            .iter()
            .filter(|one| is_own(one.name.as_str()))
        {
            let _ = store.remove(service.id);
        }
    }
}

/// Starts a command with pipes for its streams.
pub fn start(command: &mut Command) -> process::Running {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    process::Running::start(command.stderr(Stdio::piped())).unwrap()
}

/// Parses a GUID, so that comparisons ignore case.
pub fn id_of(text: &str) -> ServiceId {
    match text.parse::<ServiceRef>().unwrap() {
        ServiceRef::Id(id) => id,
        other @ ServiceRef::Name(_) => panic!("{other} is not a GUID"),
    }
}
