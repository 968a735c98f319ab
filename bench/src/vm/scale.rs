//! Measures scale: idle connections of one VM, idle VMs, and the fairness among 100 busy connections.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use anyhow::Context;
use hvsock_testkit::guest::{Guest, GuestStream};
use hvsock_testkit::usage;
use hvsock_virtio::SocketKind;
use serde::Serialize;

use super::device::GuestConfig;
use super::host::Host;
use super::lane::{Lane, connect};
use super::{GuestLaneKind, MORE_PORTS};
use crate::broker::BrokerProcess;
use crate::cpu;
use crate::stream::report::Goal;

/// The size of the measurements.
#[derive(Clone, Copy, Debug)]
pub struct ScaleOptions {
    /// Idle connections of one VM.
    pub connections: usize,
    /// Idle VMs on one broker.
    pub machines: usize,
    /// Time for which busy connections are measured.
    pub busy: Duration,
    /// Time for which idle connections and VMs are measured.
    pub idle: Duration,
}

/// The results.
#[derive(Clone, Debug, Serialize)]
pub struct Scale {
    /// Idle connections between one VM and the host.
    pub connections: IdleCost,
    /// Idle connections between two VMs.
    pub siblings: IdleCost,
    /// Idle VMs.
    pub machines: IdleCost,
    /// Fairness of busy connections to the guest: most bytes of a connection divided by least.
    pub to_guest_max_to_min: f64,
    /// The same to the host.
    pub to_host_max_to_min: f64,
    /// Count of busy connections.
    pub busy: usize,
    /// Limit on descriptors of a process.
    pub descriptors: u64,
}

/// The broker's cost of many idle connections or VMs.
#[derive(Clone, Debug, Serialize)]
pub struct IdleCost {
    /// The requested count.
    pub wanted: usize,
    /// The actual count.
    pub count: usize,
    /// Broker memory per item in bytes.
    pub broker_bytes_each: f64,
    /// Broker descriptors per item.
    pub broker_descriptors_each: f64,
    /// CPU time of the broker in milliseconds.
    pub broker_cpu_ms: f64,
    /// Duration of the measurement in seconds.
    pub seconds: f64,
    /// Why `count` is less than `wanted`.
    pub why_not_more: Option<String>,
}

/// Timeout of a connect between two VMs.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Count of busy connections.
const BUSY: usize = 100;
/// Size of their writes in bytes.
const WRITE: usize = 4096;

/// Makes all measurements.
pub fn measure(options: ScaleOptions, config: GuestConfig) -> anyhow::Result<Scale> {
    eprint!("\rmany connections ");
    let connections = connections(options, config)?;
    let siblings = siblings(options, config)?;
    eprint!("\rmany VMs         ");
    let machines = machines(options, config)?;
    eprint!("\rbusy connections ");
    let (to_guest, to_host) = busy(options, config)?;
    eprintln!();
    Ok(Scale {
        connections,
        siblings,
        machines,
        to_guest_max_to_min: to_guest,
        to_host_max_to_min: to_host,
        busy: BUSY,
        descriptors: hvsock_sys::limits::raise_descriptors()?,
    })
}

/// Resources of a broker.
struct Resources {
    bytes: u64,
    descriptors: u64,
}

impl Resources {
    fn of(broker: &BrokerProcess) -> anyhow::Result<Self> {
        Ok(Self {
            bytes: usage::resident_bytes(broker.pid()),
            descriptors: usage::descriptors(broker.pid()) as u64,
        })
    }
}

impl IdleCost {
    fn measure(
        broker: &BrokerProcess,
        before: &Resources,
        [wanted, count]: [usize; 2],
        time: Duration,
        why_not_more: Option<String>,
    ) -> anyhow::Result<Self> {
        // Lets threads that were just busy park first.
        std::thread::sleep(Duration::from_millis(300));
        let now = Resources::of(broker)?;
        let used = cpu::used_by(broker.pid())?;
        std::thread::sleep(time);
        let used = cpu::used_by(broker.pid())?.saturating_sub(used);
        let each = |now: u64, then: u64| now.saturating_sub(then) as f64 / count.max(1) as f64;
        Ok(Self {
            wanted,
            count,
            broker_bytes_each: each(now.bytes, before.bytes),
            broker_descriptors_each: each(now.descriptors, before.descriptors),
            broker_cpu_ms: used.as_secs_f64() * 1e3,
            seconds: time.as_secs_f64(),
            why_not_more,
        })
    }

    fn print(&self, what: &str) {
        println!("\n{} idle {what}", self.count);
        println!(
            "  broker memory each       {:.2} KiB",
            self.broker_bytes_each / 1024.0
        );
        println!(
            "  broker descriptors each  {:.2}",
            self.broker_descriptors_each
        );
        println!(
            "  broker CPU time          {:.2} ms in {} s",
            self.broker_cpu_ms, self.seconds
        );
        if let Some(why) = &self.why_not_more {
            println!("  not {}: {why}", self.wanted);
        }
    }
}

fn guest(broker: &BrokerProcess, number: usize, config: GuestConfig) -> anyhow::Result<Guest> {
    let options = config.options(u64::from(BrokerProcess::cid(number)));
    let guest = Guest::with_spin(&broker.vm_socket(number), options, config.spin);
    guest.with_context(|| format!("VM {number}"))
}

fn connections(options: ScaleOptions, config: GuestConfig) -> anyhow::Result<IdleCost> {
    let broker = BrokerProcess::with_vms(1)?;
    let hosts =
        MORE_PORTS.map(|port| Host::start_on(&[(GuestLaneKind::Ring, port)], &broker.endpoint()));
    let _hosts = hosts.collect::<anyhow::Result<Vec<_>>>()?;
    let guest = guest(&broker, 0, config)?;
    // The first connection has one-time costs, so the baseline includes it.
    let _first = guest.connect(MORE_PORTS.start)?;
    let before = Resources::of(&broker)?;
    let mut held = Vec::with_capacity(options.connections);
    let mut why = None;
    let mut ports = MORE_PORTS.cycle();
    while held.len() < options.connections && why.is_none() {
        match connect(&guest, ports.next().unwrap_or(MORE_PORTS.start)) {
            Ok(stream) => held.push(stream),
            Err(error) => why = Some(error.to_string()),
        }
    }
    // The host program may fail to accept some, and then closes them.
    std::thread::sleep(Duration::from_millis(500));
    let made = held.len();
    let open = held
        .iter()
        .filter(|stream| stream.close_reason().is_none())
        .count();
    if open < made {
        let closed = format!("{} of {made} were closed again", made - open);
        why = Some(why.map_or(closed.clone(), |why| format!("{why}; {closed}")));
    }
    let counts = [options.connections, open];
    IdleCost::measure(&broker, &before, counts, options.idle, why)
}

/// Connections between two VMs need no descriptors, so the descriptor limit does not bound their count.
fn siblings(options: ScaleOptions, config: GuestConfig) -> anyhow::Result<IdleCost> {
    let broker = BrokerProcess::with_vms(2)?;
    let (one, other) = (guest(&broker, 0, config)?, guest(&broker, 1, config)?);
    let port = GuestLaneKind::Ring.port();
    let listener = other.listen(port)?;
    let connect = || -> anyhow::Result<(GuestStream, GuestStream)> {
        let cid = u64::from(BrokerProcess::cid(1));
        let near = one.connect_to(SocketKind::Stream, cid, port, CONNECT_TIMEOUT)?;
        Ok((near, listener.accept(CONNECT_TIMEOUT)?))
    };
    let _first = connect()?;
    let before = Resources::of(&broker)?;
    let mut held = Vec::with_capacity(options.connections);
    let mut why = None;
    while held.len() < options.connections && why.is_none() {
        match connect() {
            Ok(pair) => held.push(pair),
            Err(error) => why = Some(format!("{error:#}")),
        }
    }
    let open = held
        .iter()
        .filter(|(near, _)| near.close_reason().is_none());
    let counts = [options.connections, open.count()];
    IdleCost::measure(&broker, &before, counts, options.idle, why)
}

fn machines(options: ScaleOptions, config: GuestConfig) -> anyhow::Result<IdleCost> {
    let broker = BrokerProcess::with_vms(options.machines + 1)?;
    let _host = Host::start(&[GuestLaneKind::Ring], &broker.endpoint())?;
    let small = GuestConfig {
        queue: 128,
        ..config
    };
    let _first = guest(&broker, options.machines, small)?;
    let before = Resources::of(&broker)?;
    let mut held = Vec::with_capacity(options.machines);
    let mut why = None;
    while held.len() < options.machines && why.is_none() {
        match guest(&broker, held.len(), small) {
            Ok(guest) => held.push(guest),
            Err(error) => why = Some(format!("{error:#}")),
        }
    }
    let counts = [options.machines, held.len()];
    let many = IdleCost::measure(&broker, &before, counts, options.idle, why)?;
    // All VMs must work.
    for guest in &held {
        Lane::connect(guest, GuestLaneKind::Ring)?.round_trips(3)?;
    }
    Ok(many)
}

/// Fairness among busy connections, in each direction: most bytes divided by least.
fn busy(options: ScaleOptions, config: GuestConfig) -> anyhow::Result<(f64, f64)> {
    let broker = BrokerProcess::with_vms(1)?;
    let _host = Host::start(&[GuestLaneKind::Ring], &broker.endpoint())?;
    let guest = guest(&broker, 0, config)?;
    let endless = u64::MAX / WRITE as u64 - 1;
    let lanes = || -> anyhow::Result<Vec<Lane>> {
        let lanes = (0..BUSY).map(|_| Lane::connect(&guest, GuestLaneKind::Ring));
        lanes.collect()
    };
    let mut buffer = vec![0; WRITE];

    let mut readers = lanes()?;
    for lane in &mut readers {
        lane.request_writes(WRITE, endless)?;
    }
    let to_guest = max_to_min(&readers, options.busy, |lane| {
        lane.stream().try_read(&mut buffer)
    })?;
    drop(readers);
    let mut writers = lanes()?;
    for lane in &mut writers {
        lane.request_reads(WRITE, endless)?;
    }
    let to_host = max_to_min(&writers, options.busy, |lane| {
        lane.stream().try_write(&buffer)
    })?;
    Ok((to_guest, to_host))
}

/// Serves the lanes round robin for `time`. Returns the most bytes of a lane divided by the least.
fn max_to_min(
    lanes: &[Lane],
    time: Duration,
    mut attempt: impl FnMut(&Lane) -> std::io::Result<usize>,
) -> anyhow::Result<f64> {
    let mut moved = vec![0_u64; lanes.len()];
    let start = Instant::now();
    // The first lane finds the most free space in the queue, so the first lane rotates.
    let firsts = (0..lanes.len()).cycle();
    for first in firsts.take_while(|_| start.elapsed() < time) {
        let mut any = false;
        for place in 0..lanes.len() {
            let place = (first + place) % lanes.len();
            match attempt(&lanes[place]) {
                Ok(count) => {
                    moved[place] += count as u64;
                    any = true;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !any {
            std::thread::yield_now();
        }
    }
    let most = moved.iter().max().copied().unwrap_or(0);
    let least = moved.iter().min().copied().unwrap_or(0);
    Ok(most as f64 / least as f64)
}

impl Scale {
    /// The goals of scale.
    pub fn goals(&self) -> Vec<Goal> {
        let fair = self.to_guest_max_to_min.max(self.to_host_max_to_min);
        let mut goals = vec![Goal {
            goal: format!(
                "of {} busy connections none gets less than half of another",
                self.busy
            ),
            met: Some(fair <= 2.0),
            found: format!(
                "{:.2} to the guest, {:.2} to the host",
                self.to_guest_max_to_min, self.to_host_max_to_min
            ),
        }];
        for (many, what) in [
            (&self.connections, "connections with the host"),
            (&self.siblings, "connections with another VM"),
            (&self.machines, "VMs"),
        ] {
            // With too few descriptors the goal was not measured.
            let needed = (many.wanted as f64 * many.broker_descriptors_each) as u64;
            let met = many.count == many.wanted && many.broker_cpu_ms <= many.seconds;
            goals.push(Goal {
                goal: format!(
                    "{} idle {what}, which cost the broker no CPU time",
                    many.wanted
                ),
                met: (met || needed < self.descriptors).then_some(met),
                found: format!(
                    "{} of them, {:.2} ms in {} s, with {} descriptors at most",
                    many.count, many.broker_cpu_ms, many.seconds, self.descriptors
                ),
            });
        }
        goals
    }

    /// Prints the results.
    pub fn print(&self) {
        self.connections
            .print("connections of one VM with the host");
        self.siblings.print("connections of one VM with another");
        self.machines.print("VMs on one broker");
        println!(
            "\n{} busy connections in one VM, most bytes divided by least",
            self.busy
        );
        println!("  to the guest  {:.2}", self.to_guest_max_to_min);
        println!("  to the host   {:.2}", self.to_host_max_to_min);
    }
}
