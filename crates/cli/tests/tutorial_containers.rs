//! Runs docs/tutorial-containers.md: every command, in order, prints what the page shows. The terminal `vm` is a shell
//! in a real guest, which starts where the page first uses it.

#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "the other page uses all of it")]
mod tutorial_page;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use hvsock_guests::{Config, File, Guest, Kit, Vmm, Vsock};
use hvsock_testkit::{TempFolder, require};
use tutorial_page::Likeness;
use tutorial_page::terminal::{Terminal, follow};

const PAGE: &str = include_str!("../../../docs/tutorial-containers.md");
/// The broker's folder in the page.
const FOLDER: &str = "/tmp/hvsock-tutorial";

/// The VM of the page, as a VMM starts it with what `hvsock vm add` prints.
fn boot(kit: &Kit, hvsock: &Path, agent: &Path, runc: &Path, folder: &Path) -> Guest {
    let mut config = Config::new("web");
    config.containers = true;
    config.memory_mib = 512;
    config.files = File::program(hvsock, "/bin/hvsock").expect("a program");
    for (program, path) in [(agent, "/bin/hvsock-agent"), (runc, "/bin/runc")] {
        config
            .files
            .extend(File::program(program, path).expect("a program"));
    }
    let socket = folder.join("vm/web.sock");
    config.vsock = Some(Vsock { socket });
    Guest::boot(kit, &config).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_command_of_the_page_about_containers_prints_what_the_page_shows() {
    let (Some(runc), Some(hvsock), Some(agent)) = (
        require::runc(),
        require::static_hvsock(),
        require::static_agent(),
    ) else {
        return;
    };
    let Some(kit) = require::found(Kit::find_for(Vmm::Uml)) else {
        return;
    };
    let Some(()) = require::root() else { return };
    let home = TempFolder::new();
    let bin = home.join("bin");
    fs::create_dir(&bin).expect("a folder");
    symlink(env!("CARGO_BIN_EXE_hvsock"), bin.join("hvsock")).expect("a link");
    for (program, name) in [(&hvsock, "hvsock-static"), (&agent, "hvsock-agent")] {
        symlink(program, home.join(name)).expect("a link");
    }
    let folder = home.join("d");
    let folder_text = folder.display().to_string();
    let mut likeness = Likeness::new(&[(folder_text.as_str(), FOLDER), ("uid 0", "root")]);
    // Dropped after the terminals.
    let mut guest = None;
    let mut terminals: HashMap<&str, Terminal> = HashMap::new();
    let mut run = 0;
    for block in tutorial_page::console_blocks(PAGE) {
        let terminal = terminals.entry(block.terminal).or_insert_with(|| {
            if block.terminal != "vm" {
                return Terminal::open(home.path());
            }
            let booted = boot(&kit, &hvsock, &agent, &runc, &folder);
            // A shell whose input and output are a terminal would show a prompt and each command.
            let shell = booted.attach("cd /root && sh | cat").expect("a shell");
            shell.set_read_timeout(None).expect("no timeout");
            let output = shell.try_clone().expect("a second handle");
            guest = Some(booted);
            Terminal::of(shell, output)
        });
        run += follow(terminal, &block, &mut likeness);
    }
    assert!(run > 20, "only {run} commands were run");
    for terminal in terminals.values_mut() {
        terminal.finish();
    }
}

#[test]
fn every_block_of_the_page_about_containers_is_tested_or_for_another_engine() {
    for language in tutorial_page::languages(PAGE) {
        assert!(["console", "text"].contains(&language), "{language}");
    }
}
