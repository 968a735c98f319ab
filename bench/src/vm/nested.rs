//! A container in a virtual machine: the same guest's connections to the host program without use of a broker in
//! it, through its broker, and from a container of that broker.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hvsock_guests::{Kit, Vmm};
use hvsock_testkit::nested::{ContainerInVm, GuestBroker, Programs};
use hvsock_testkit::{require, wait};

use super::GuestLaneKind;
use super::host::Host;
use super::measure::{self, Effort, Measured};
use super::report::{ConnectionRow, GuestKind, Report};
use super::uml::{Program, ROLE};
use crate::broker::BrokerProcess;
use crate::cpu;
use crate::figures::Spread;
use crate::machine::Machine;

/// Size of its virtqueues, which the driver of User-mode Linux chooses.
const QUEUE: u16 = 256;
/// This program's path in the guest.
const PROGRAM: &str = "/bin/hvsock-probe";

/// Measures the three kinds of lane in alternating turns, in one guest.
pub fn measure(effort: Effort, progress: impl FnMut(usize)) -> anyhow::Result<Report> {
    let kit = Kit::find_for(Vmm::Uml)?;
    let broker = BrokerProcess::with_vms(1)?;
    let host = Host::start(&[GuestLaneKind::Container], &broker.endpoint())?;
    let guest = GuestBroker::boot(&kit, "vm0", &broker.vm_socket(0), programs()?)?;
    guest.start();
    let port = GuestLaneKind::Container.port();
    guest.shell(&format!("hvsock service register Bench --port {port}"));
    let client = hvsock_client::Client::new(broker.control())?;
    let name = client.status()?.partition.to_string();
    // The broker of the guest learns the name from its host.
    wait::eventually("the guest knows its host", || {
        let why = guest.run(&format!("hvsock why {name} {port}"));
        why.success()
    });
    let in_vm = |how: &str| {
        let attached = guest
            .guest()
            .attach(&format!("{how} exec {PROGRAM} {ROLE} parent"))?;
        Program::new(attached).with_context(|| guest.guest().console())
    };
    let container = ContainerInVm::attach(&guest, "box", &[PROGRAM, ROLE, &name]);
    let mut lanes = [
        Measured::new(GuestLaneKind::Container, Program::new(container)?),
        Measured::new(GuestLaneKind::MachineWithBroker, in_vm("")?),
        Measured::new(GuestLaneKind::Machine, in_vm("HVSOCK_ENDPOINT=vsock")?),
    ];
    let processes = [
        std::process::id(),
        broker.pid(),
        host.pid(),
        guest.guest().pid(),
    ];
    let others = || -> std::io::Result<Duration> {
        let own = processes.iter().copied().map(cpu::used_by);
        let own = own.sum::<std::io::Result<Duration>>()?;
        Ok(cpu::used_by_all()?.saturating_sub(own))
    };
    let (start, before) = (Instant::now(), others()?);
    let turns = measure::run(&mut lanes, effort, progress)?;
    let mut report = Report::new(Machine::current(), &lanes, turns, effort, QUEUE);
    report.guest = GuestKind::Nested;
    report.connections = connections(&mut lanes, effort);
    let used = others()?.saturating_sub(before);
    report.others = used.as_secs_f64() / start.elapsed().as_secs_f64();
    Ok(report)
}

/// The programs of the guest, of which the command is beside this one.
fn programs() -> anyhow::Result<Programs> {
    let probe = std::env::current_exe()?;
    let hvsock = probe.with_file_name("hvsock");
    ensure!(
        hvsock.is_file(),
        "{} is not built; `cargo xtask bench vm --nested` does it",
        hvsock.display()
    );
    let runtime: PathBuf = require::runc().context("runc starts the container")?;
    Ok(Programs {
        hvsock,
        probe,
        agent: None,
        load: None,
        runtime,
    })
}

fn connections(lanes: &mut [Measured<Program>; 3], effort: Effort) -> Vec<ConnectionRow> {
    let mut rows = Vec::new();
    let mut rates = [const { Vec::new() }; 3];
    let mut failed = [const { None }; 3];
    for turn in 0..effort.turns {
        for place in 0..lanes.len() {
            let place = (turn + place) % lanes.len();
            match lanes[place].lane().connects(effort.slice) {
                Ok(rate) => rates[place].push(rate),
                Err(error) => failed[place] = Some(format!("{error:#}")),
            }
        }
    }
    for ((over, rates), failed) in GuestLaneKind::NESTED.into_iter().zip(rates).zip(failed) {
        rows.push(ConnectionRow {
            over,
            per_second: (!rates.is_empty()).then(|| Spread::of(rates)),
            at_once: 0,
            connect_ms: None,
            answered_ms: None,
            messages_per_second: None,
            failed,
        });
    }
    rows
}
