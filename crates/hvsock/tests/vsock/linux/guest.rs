//! The guest that runs the rest of this program.

use std::time::Duration;

use hvsock_guests::{Config, File, Guest, Kit, Vmm};
use hvsock_testkit::require;

use super::STAGE;

/// The timeout of all tests, on emulated processors and beside other tests.
const LIMIT: Duration = Duration::from_secs(300);
const PROGRAM: &str = "/bin/vsock-tests";
const LOOPBACK: &str = "/lib/vsock_loopback.ko";

/// Runs the tests in a guest without a vsock transport to a host.
pub fn all_tests_pass_without_a_host() {
    let Some(kit) = require::found(Kit::find_for(Vmm::Qemu)) else {
        return;
    };
    let guest = Guest::boot(&kit, &config(&kit, "alone")).expect("it starts");
    run(&guest, "before loopback").expect("in the guest");
    load_loopback(&guest);
    run(&guest, "with loopback").expect("in the guest");
}

/// A guest with this program and the loopback module, which is not loaded.
pub fn config(kit: &Kit, name: &str) -> Config {
    let mut config = Config::new(name);
    config.memory_mib = 768;
    config.processors = 2;
    let this = std::env::current_exe().expect("this program");
    config.files = File::program(&this, PROGRAM).expect("this program's files");
    let loopback = kit.module("vsock_loopback").expect("the kernel has it");
    config.files.push(File::bytes(LOOPBACK, 0o644, loopback));
    config
}

/// Boots the guest and loads the loopback module.
pub fn boot(kit: &Kit, config: &Config) -> Guest {
    let guest = Guest::boot(kit, config).expect("it starts");
    load_loopback(&guest);
    guest
}

fn load_loopback(guest: &Guest) {
    let loaded = guest.run(&format!("insmod {LOOPBACK}"), LIMIT);
    assert!(loaded.expect("insmod").success());
}

/// Runs the tests of a stage in the guest, one after another, so that each has the time of its
/// timeouts.
pub fn run(guest: &Guest, stage: &str) -> Result<(), String> {
    let command = format!("{STAGE}='{stage}' exec {PROGRAM} --test-threads=1");
    let output = guest.run(&command, LIMIT).map_err(|why| why.to_string())?;
    eprintln!("{stage}:\n{}", output.text());
    match output.success() {
        true => Ok(()),
        false => Err(output.stderr_text()),
    }
}
