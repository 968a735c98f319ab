//! The part of the demo that uses the guest's integration services.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hvsock::Endpoint;
use hvsock_address::PartitionRef;
use hvsock_services::copy::{Source, Unobserved};
use hvsock_services::guest::{self, Config};
use hvsock_services::host::copy::{Copy, Put};
use hvsock_services::host::session::{self, Ending, Event, Exec, ExecError};
use hvsock_services::link::{CallError, Target};

use super::narrator::Narrator;
use crate::os::linux::guest_services::block_on;

/// The longest wait until the agent offers its services.
const AGENT_TIMEOUT: Duration = Duration::from_secs(30);

/// The size of the file that is copied into the guest, in bytes.
const BYTES: usize = 4 << 20;

/// Runs the agent in a thread. Outside the demo it is the program `hvsock-agent`.
pub fn run_agent() -> std::io::Result<()> {
    let agent = thread::Builder::new().name("agent".into());
    agent.spawn(|| block_on(guest::run(Config::new())))?;
    Ok(())
}

/// Runs a command in the guest, copies a file into it, and checks the copy.
pub fn show(
    narrator: &Narrator,
    endpoint: &Endpoint,
    guest: &PartitionRef,
    folder: &Path,
) -> Result<()> {
    let target = Target::new(endpoint.clone(), guest.clone());
    until_offered(&target)?;

    narrator.command(&format!("hvsock exec {guest} -- uptime"))?;
    narrator.good("guest", run(&target, &["uptime"])?.trim())?;

    let file = folder.join("demo-file");
    std::fs::write(&file, vec![b'.'; BYTES]).context("cannot write a file")?;
    narrator.command(&format!("hvsock cp demo-file {guest}:/tmp/"))?;
    let start = Instant::now();
    let copy = block_on(Copy::connect(&target))??;
    copy.put(&[Source::new(&file)], &Put::to("/tmp/"), &mut Unobserved)?;
    let took = start.elapsed().as_millis();
    let counted = run(&target, &["wc", "-c", "/tmp/demo-file"])?;
    if !counted.starts_with(&BYTES.to_string()) {
        bail!("the guest should have {BYTES} bytes, but has {counted}");
    }
    let have = format!(
        "has the file after {took} ms, checksum verified: {}",
        counted.trim()
    );
    narrator.good("guest", &have)
}

/// Waits until the guest's agent runs commands.
fn until_offered(target: &Target) -> Result<()> {
    let began = Instant::now();
    loop {
        match run(target, &["true"]) {
            Ok(_) => return Ok(()),
            Err(error) if !is_absent(&error) || began.elapsed() > AGENT_TIMEOUT => {
                return Err(error);
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn is_absent(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(ExecError::Call(CallError::Connect { .. }))
    )
}

/// Runs a command in the guest, which must succeed, and returns its standard output.
fn run(target: &Target, argv: &[&str]) -> Result<String> {
    block_on(async {
        let mut running = session::start(target, Exec::new(argv)).await?;
        let mut printed = Vec::new();
        loop {
            match running.output.next().await? {
                Event::Stdout(bytes) => printed.extend_from_slice(&bytes),
                Event::Exited(exit) if exit.how == Ending::Status(0) => break,
                Event::Exited(exit) => bail!("`{}` in the guest: {:?}", argv.join(" "), exit.how),
                Event::Stderr(_) | Event::StdinClosed | Event::HungUp(_) => {}
            }
        }
        Ok(String::from_utf8_lossy(&printed).into_owned())
    })?
}
