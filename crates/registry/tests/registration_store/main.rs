//! Runs the suite of stores over every one: the folder of TOML files, the keys of Windows (over a fake
//! of the Windows registry and, on Windows, over the real one), and the store in memory.

#[cfg(target_os = "linux")]
mod folder;
mod keys;
#[cfg(windows)]
mod local_machine;

use std::process::ExitCode;

use hvsock_testkit::conformance;
use hvsock_testkit::registration_store::{MemoryStorage, trials};

fn main() -> ExitCode {
    let mut all = trials("memory", || Box::<MemoryStorage>::default());
    all.extend(trials("keys", || Box::new(keys::FakeKeys::new())));
    #[cfg(target_os = "linux")]
    all.extend(trials("folder", || Box::new(folder::TomlFolder::new())));
    #[cfg(windows)]
    all.extend(trials("local_machine", || {
        Box::new(local_machine::ScratchKeys::new())
    }));
    conformance::main(all)
}
