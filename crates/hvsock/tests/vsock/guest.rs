//! The guest in which the rest of this program runs.

use std::time::Duration;

use hvsock_qemu::{Config, File, Guest, Kit};
use hvsock_testkit::require;

use crate::STAGE;

/// All of it, by translation, beside other tests.
const LIMIT: Duration = Duration::from_secs(600);
const PROGRAM: &str = "/bin/vsock-tests";
const LOOPBACK: &str = "/lib/vsock_loopback.ko";

pub fn everything_passes() {
    let Some(kit) = require::found(Kit::find()) else {
        return;
    };
    let mut config = Config::new("alone");
    config.memory_mib = 768;
    config.processors = 2;
    let this = std::env::current_exe().expect("this program");
    config.files = File::program(&this, PROGRAM).expect("this program's files");
    let loopback = kit.module("vsock_loopback").expect("the kernel has it");
    config.files.push(File::bytes(LOOPBACK, 0o644, loopback));
    let guest = Guest::boot(&kit, &config).expect("it starts");

    run(&guest, "before loopback", 1);
    let loaded = guest.run(&format!("insmod {LOOPBACK}"), LIMIT);
    assert!(loaded.expect("insmod").success());
    // One after another on an emulated processor, so that each has the time that it may take.
    run(&guest, "with loopback", 1);
}

fn run(guest: &Guest, stage: &str, threads: u32) {
    let command = format!("{STAGE}='{stage}' exec {PROGRAM} --test-threads={threads}");
    let output = guest.run(&command, LIMIT).expect("the tests end");
    eprintln!("{stage}:\n{}", output.text());
    assert!(
        output.success(),
        "in the guest, {stage}: {}",
        output.complaints()
    );
}
