//! Guests in User-mode Linux: a real kernel at nearly native speed, on either device.
//!
//! The guest runs this program in the role [`ROLE`]. It measures its own connections to the host program, as
//! it is asked to over a serial port.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hvsock::{HvStream, ServiceId};
use hvsock_guests::{Attached, Config, File, Guest, Kit, Vmm, Vsock};

use super::device::VhostDeviceVsock;
use super::host::Host;
use super::lane::Lane;
use super::measure::{self, Effort, Measurable, Measured, Paced};
use super::report::{ConnectionRow, GuestKind, Report};
use super::{Direction, GuestLaneKind, uml_adapter};
use crate::broker::BrokerProcess;
use crate::cpu;
use crate::figures::Spread;
use crate::machine::Machine;
use crate::worker;

/// First argument that makes a bench's program run as the program in the guest.
pub const ROLE: &str = "role-guest";

/// The program's path in the guest.
const PROGRAM: &str = "/bin/bench";
/// Size of its virtqueues, which the driver of User-mode Linux chooses.
const QUEUE: u16 = 256;
/// Time limit of a measurement, besides its slice.
const GRACE: Duration = Duration::from_secs(60);
/// The compared lanes.
const OVERS: [GuestLaneKind; 2] = [GuestLaneKind::Ring, GuestLaneKind::Peer];

/// This program in a guest, in the role [`ROLE`].
#[derive(Debug)]
pub(super) struct Program {
    requests: Attached,
    replies: BufReader<Attached>,
}

impl Program {
    /// Waits until the program at this port is ready.
    pub(super) fn new(requests: Attached) -> anyhow::Result<Self> {
        let replies = BufReader::new(requests.try_clone()?);
        let mut started = Self { requests, replies };
        let reply = started.receive(GRACE);
        ensure!(
            reply.as_ref().is_ok_and(|reply| reply == "ready"),
            "the program in the guest did not start: {reply:?}"
        );
        Ok(started)
    }

    fn ask(&mut self, request: &str, limit: Duration) -> anyhow::Result<String> {
        self.requests.write_all(format!("{request}\n").as_bytes())?;
        let reply = self.receive(limit).with_context(|| request.to_owned())?;
        match reply.strip_prefix("error ") {
            Some(why) => anyhow::bail!("in the guest: {why}"),
            None => Ok(reply),
        }
    }

    fn receive(&mut self, limit: Duration) -> anyhow::Result<String> {
        // The second handle shares the socket, and so its timeout.
        self.requests.set_read_timeout(Some(limit))?;
        let mut line = String::new();
        let count = self.replies.read_line(&mut line)?;
        ensure!(count > 0, "the guest has ended");
        Ok(line.trim_end().to_owned())
    }

    /// Connections per second that the guest makes and closes in sequence.
    pub(super) fn connects(&mut self, slice: Duration) -> anyhow::Result<f64> {
        let request = format!("connects {}", slice.as_micros());
        Ok(self.ask(&request, slice + GRACE)?.parse()?)
    }
}

impl Measurable for Program {
    fn throughput(
        &mut self,
        direction: Direction,
        at: usize,
        slice: Duration,
    ) -> anyhow::Result<f64> {
        let direction = direction as usize;
        let request = format!("throughput {direction} {at} {}", slice.as_micros());
        Ok(self.ask(&request, slice + GRACE)?.parse()?)
    }

    fn round_trips(&mut self, slice: Duration) -> anyhow::Result<[f64; 2]> {
        let reply = self.ask(&format!("trips {}", slice.as_micros()), slice + GRACE)?;
        let (p50, p99) = reply.split_once(' ').context("two times")?;
        Ok([p50.parse()?, p99.parse()?])
    }
}

/// A guest, as a lane of its own. Fields are dropped in this order.
#[derive(Debug)]
struct UmlGuest {
    program: Program,
    guest: Guest,
    _host: Host,
    device: Device,
}

#[derive(Debug)]
enum Device {
    Hvsock(BrokerProcess),
    Peer(VhostDeviceVsock),
}

impl UmlGuest {
    fn hvsock(kit: &Kit) -> anyhow::Result<Self> {
        let broker = BrokerProcess::with_vms(1)?;
        let host = Host::start(&[GuestLaneKind::Ring], &broker.endpoint())?;
        let socket = broker.vm_socket(0);
        Self::boot(kit, "hvsock", &socket, host, Device::Hvsock(broker))
    }

    fn vhost_device_vsock(kit: &Kit, program: &Path) -> anyhow::Result<Self> {
        let peer = VhostDeviceVsock::start(program)?;
        let host = Host::start(&[GuestLaneKind::Peer], &peer.base())?;
        let socket = peer.socket();
        let deadline = Instant::now() + GRACE;
        while !socket.exists() {
            ensure!(
                Instant::now() < deadline,
                "vhost-device-vsock does not listen"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let adapted = socket.with_extension("adapted");
        uml_adapter::start(adapted.clone(), socket)?;
        Self::boot(kit, "peer", &adapted, host, Device::Peer(peer))
    }

    fn boot(
        kit: &Kit,
        name: &str,
        socket: &Path,
        host: Host,
        device: Device,
    ) -> anyhow::Result<Self> {
        let mut config = Config::new(name);
        config.files = File::program(&std::env::current_exe()?, PROGRAM)?;
        config.vsock = Some(Vsock {
            socket: socket.to_owned(),
        });
        let guest = Guest::boot(kit, &config)?;
        let attached = guest.attach(&format!("exec {PROGRAM} {ROLE} parent"))?;
        let program = Program::new(attached).with_context(|| guest.console())?;
        Ok(Self {
            program,
            guest,
            _host: host,
            device,
        })
    }

    fn processes(&self) -> [u32; 2] {
        let device = match &self.device {
            Device::Hvsock(broker) => broker.pid(),
            Device::Peer(peer) => peer.pid(),
        };
        [device, self.guest.pid()]
    }
}

impl Measurable for UmlGuest {
    fn throughput(
        &mut self,
        direction: Direction,
        at: usize,
        slice: Duration,
    ) -> anyhow::Result<f64> {
        self.program.throughput(direction, at, slice)
    }

    fn round_trips(&mut self, slice: Duration) -> anyhow::Result<[f64; 2]> {
        self.program.round_trips(slice)
    }
}

/// Measures one guest on each device in alternating turns.
pub fn measure(peer: &Path, effort: Effort, progress: impl FnMut(usize)) -> anyhow::Result<Report> {
    let kit = Kit::find_for(Vmm::Uml)?;
    let mut lanes = [
        Measured::new(GuestLaneKind::Ring, UmlGuest::hvsock(&kit)?),
        Measured::new(
            GuestLaneKind::Peer,
            UmlGuest::vhost_device_vsock(&kit, peer)?,
        ),
    ];
    let mut processes = vec![std::process::id()];
    for lane in &mut lanes {
        processes.extend(lane.lane().processes());
    }
    let others = || -> std::io::Result<Duration> {
        let own = processes.iter().copied().map(cpu::used_by);
        let own = own.sum::<std::io::Result<Duration>>()?;
        Ok(cpu::used_by_all()?.saturating_sub(own))
    };
    let (start, before) = (Instant::now(), others()?);
    let turns = measure::run(&mut lanes, effort, progress)?;
    let mut report = Report::new(Machine::current(), &lanes, turns, effort, QUEUE);
    report.guest = GuestKind::UserModeLinux;
    report.connections = connections(&mut lanes, effort);
    let used = others()?.saturating_sub(before);
    report.others = used.as_secs_f64() / start.elapsed().as_secs_f64();
    Ok(report)
}

fn connections(lanes: &mut [Measured<UmlGuest>; 2], effort: Effort) -> Vec<ConnectionRow> {
    let mut rates = [const { Vec::new() }; 2];
    let mut failed = [const { None }; 2];
    for turn in 0..effort.turns {
        for place in 0..lanes.len() {
            let place = (turn + place) % lanes.len();
            if failed[place].is_some() {
                continue;
            }
            match lanes[place].lane().program.connects(effort.slice) {
                Ok(rate) => rates[place].push(rate),
                Err(error) => failed[place] = Some(format!("{error:#}")),
            }
        }
    }
    let rows = OVERS.into_iter().zip(rates).zip(failed);
    rows.map(|((over, rates), failed)| ConnectionRow {
        over,
        per_second: (!rates.is_empty()).then(|| Spread::of(rates)),
        at_once: 0,
        connect_ms: None,
        answered_ms: None,
        messages_per_second: None,
        failed,
    })
    .collect()
}

/// Body of the program in the guest, which connects to the host program in this partition.
pub fn serve(partition: &str) -> anyhow::Result<()> {
    let machine = std::fs::read_to_string("/proc/cpuinfo")?;
    // On another machine, the port would be one of that machine's host.
    ensure!(
        machine.contains("User Mode Linux"),
        "this role is for a guest in User-mode Linux"
    );
    let service = ServiceId::from_port(GuestLaneKind::Ring.port());
    let connect = || HvStream::connect((partition, service));
    let mut lane = Paced::new(Lane::new(connect()?));
    let micros =
        |text: &str| -> anyhow::Result<Duration> { Ok(Duration::from_micros(text.parse()?)) };
    worker::serve(|words| match words {
        ["throughput", direction, at, slice] => {
            let direction = match *direction {
                "0" => Direction::BOTH[0],
                _ => Direction::BOTH[1],
            };
            let rate = lane.throughput(direction, at.parse()?, micros(slice)?)?;
            Ok(rate.to_string())
        }
        ["trips", slice] => {
            let [p50, p99] = lane.round_trips(micros(slice)?)?;
            Ok(format!("{p50} {p99}"))
        }
        ["connects", slice] => {
            let (start, slice) = (Instant::now(), micros(slice)?);
            let mut made = 0;
            while start.elapsed() < slice {
                drop(connect()?);
                made += 1;
            }
            Ok((f64::from(made) / start.elapsed().as_secs_f64()).to_string())
        }
        other => anyhow::bail!("unknown request {other:?}"),
    })
}
