//! How far our device goes: many connections in one machine, many machines, and whether a hundred
//! that are busy get the same.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use anyhow::Context;
use hvsock_testkit::guest::{Guest, GuestStream};
use hvsock_virtio::SocketKind;
use serde::Serialize;

use super::device::Kind;
use super::host::Host;
use super::lane::{Lane, connect};
use super::{MORE_PORTS, Over};
use crate::broker::BrokerProcess;
use crate::cpu;
use crate::stream::goals::Goal;

/// How much to try.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Connections in one machine.
    pub connections: usize,
    /// Machines on one broker.
    pub machines: usize,
    /// For which busy ones are looked at.
    pub busy: Duration,
    /// For which idle ones are.
    pub idle: Duration,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Scale {
    /// Idle connections in one machine.
    pub connections: Many,
    /// Idle connections in one machine, with another machine.
    pub siblings: Many,
    /// Idle machines.
    pub machines: Many,
    /// Bytes that each of the busy connections moved to the guest, the most by the least.
    pub to_guest_most_by_least: f64,
    /// Likewise, to the host.
    pub to_host_most_by_least: f64,
    /// How many were busy.
    pub busy: usize,
    /// Descriptors that a process may have here.
    pub descriptors: u64,
}

/// Many things that are there and do nothing.
#[derive(Clone, Debug, Serialize)]
pub struct Many {
    /// How many were wished for.
    pub wanted: usize,
    /// How many there were.
    pub count: usize,
    /// Memory of the broker for each.
    pub broker_bytes_each: f64,
    /// Descriptors of the broker for each.
    pub broker_descriptors_each: f64,
    /// Milliseconds of a processor's time that the broker used.
    pub broker_cpu_ms: f64,
    /// In so many seconds.
    pub seconds: f64,
    /// Why not more.
    pub why_not_more: Option<String>,
}

/// How long a connect between two machines may take.
const PATIENT: Duration = Duration::from_secs(5);
/// Busy connections.
const BUSY: usize = 100;
/// Bytes of their writes.
const WRITE: usize = 4096;

/// Tries all of it.
pub fn measure(wish: Wish, kind: Kind) -> anyhow::Result<Scale> {
    eprint!("\rmany connections ");
    let connections = connections(wish, kind)?;
    let siblings = siblings(wish, kind)?;
    eprint!("\rmany machines    ");
    let machines = machines(wish, kind)?;
    eprint!("\rbusy connections ");
    let (to_guest, to_host) = busy(wish, kind)?;
    eprintln!();
    Ok(Scale {
        connections,
        siblings,
        machines,
        to_guest_most_by_least: to_guest,
        to_host_most_by_least: to_host,
        busy: BUSY,
        descriptors: hvsock_sys::limits::raise_descriptors()?,
    })
}

/// What a broker uses.
struct Used {
    bytes: u64,
    descriptors: u64,
}

impl Used {
    fn by(broker: &BrokerProcess) -> anyhow::Result<Self> {
        Ok(Self {
            bytes: broker.resident_bytes()?,
            descriptors: broker.open_descriptors()?,
        })
    }
}

impl Many {
    fn look(
        broker: &BrokerProcess,
        before: &Used,
        [wanted, count]: [usize; 2],
        time: Duration,
        why_not_more: Option<String>,
    ) -> anyhow::Result<Self> {
        // What was busy a moment ago falls asleep first.
        std::thread::sleep(Duration::from_millis(300));
        let now = Used::by(broker)?;
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

fn guest(broker: &BrokerProcess, number: usize, kind: Kind) -> anyhow::Result<Guest> {
    let options = kind.options(u64::from(BrokerProcess::cid(number)));
    let guest = Guest::with_spin(&broker.vm_socket(number), options, kind.spin);
    guest.with_context(|| format!("machine {number}"))
}

fn connections(wish: Wish, kind: Kind) -> anyhow::Result<Many> {
    let broker = BrokerProcess::with_vms(1)?;
    let hosts = MORE_PORTS.map(|port| Host::start_on(&[(Over::Ring, port)], &broker.endpoint()));
    let _hosts = hosts.collect::<anyhow::Result<Vec<_>>>()?;
    let guest = guest(&broker, 0, kind)?;
    // What the first connection costs is not what each costs.
    let _first = guest.connect(MORE_PORTS.start)?;
    let before = Used::by(&broker)?;
    let mut held = Vec::with_capacity(wish.connections);
    let mut why = None;
    let mut ports = MORE_PORTS.cycle();
    while held.len() < wish.connections && why.is_none() {
        match connect(&guest, ports.next().unwrap_or(MORE_PORTS.start)) {
            Ok(stream) => held.push(stream),
            Err(error) => why = Some(error.to_string()),
        }
    }
    // The host's program may not have been able to take all of them.
    std::thread::sleep(Duration::from_millis(500));
    let made = held.len();
    let standing = held
        .iter()
        .filter(|stream| stream.close_reason().is_none())
        .count();
    if standing < made {
        let of_those = format!("{} of {made} were ended again", made - standing);
        why = Some(why.map_or(of_those.clone(), |why| format!("{why}; {of_those}")));
    }
    let counts = [wish.connections, standing];
    Many::look(&broker, &before, counts, wish.idle, why)
}

/// Those with another machine take no descriptors, so that their number is bounded by nothing here.
fn siblings(wish: Wish, kind: Kind) -> anyhow::Result<Many> {
    let broker = BrokerProcess::with_vms(2)?;
    let (one, other) = (guest(&broker, 0, kind)?, guest(&broker, 1, kind)?);
    let port = Over::Ring.port();
    let listener = other.listen(port)?;
    let connect = || -> anyhow::Result<(GuestStream, GuestStream)> {
        let cid = u64::from(BrokerProcess::cid(1));
        let near = one.connect_to(SocketKind::Stream, cid, port, PATIENT)?;
        Ok((near, listener.accept(PATIENT)?))
    };
    let _first = connect()?;
    let before = Used::by(&broker)?;
    let mut held = Vec::with_capacity(wish.connections);
    let mut why = None;
    while held.len() < wish.connections && why.is_none() {
        match connect() {
            Ok(pair) => held.push(pair),
            Err(error) => why = Some(format!("{error:#}")),
        }
    }
    let standing = held
        .iter()
        .filter(|(near, _)| near.close_reason().is_none());
    let counts = [wish.connections, standing.count()];
    Many::look(&broker, &before, counts, wish.idle, why)
}

fn machines(wish: Wish, kind: Kind) -> anyhow::Result<Many> {
    let broker = BrokerProcess::with_vms(wish.machines + 1)?;
    let _host = Host::start(&[Over::Ring], &broker.endpoint())?;
    let small = Kind { queue: 128, ..kind };
    let _first = guest(&broker, wish.machines, small)?;
    let before = Used::by(&broker)?;
    let mut held = Vec::with_capacity(wish.machines);
    let mut why = None;
    while held.len() < wish.machines && why.is_none() {
        match guest(&broker, held.len(), small) {
            Ok(guest) => held.push(guest),
            Err(error) => why = Some(format!("{error:#}")),
        }
    }
    let counts = [wish.machines, held.len()];
    let many = Many::look(&broker, &before, counts, wish.idle, why)?;
    // They are not only there, they work.
    for guest in &held {
        Lane::connect(guest, Over::Ring)?.go_and_return(3)?;
    }
    Ok(many)
}

/// The most bytes that one of many busy connections moved by the least, each way.
fn busy(wish: Wish, kind: Kind) -> anyhow::Result<(f64, f64)> {
    let broker = BrokerProcess::with_vms(1)?;
    let _host = Host::start(&[Over::Ring], &broker.endpoint())?;
    let guest = guest(&broker, 0, kind)?;
    let for_ever = u64::MAX / WRITE as u64 - 1;
    let lanes = || -> anyhow::Result<Vec<Lane>> {
        let lanes = (0..BUSY).map(|_| Lane::connect(&guest, Over::Ring));
        lanes.collect()
    };
    let mut buffer = vec![0; WRITE];

    let mut readers = lanes()?;
    for lane in &mut readers {
        lane.expect_bytes(WRITE, for_ever)?;
    }
    let to_guest = most_by_least(&readers, wish.busy, |lane| {
        lane.stream().try_read(&mut buffer)
    })?;
    drop(readers);
    let mut writers = lanes()?;
    for lane in &mut writers {
        lane.send_bytes(WRITE, for_ever)?;
    }
    let to_host = most_by_least(&writers, wish.busy, |lane| lane.stream().try_write(&buffer))?;
    Ok((to_guest, to_host))
}

/// Lets each lane do what it can, in turns, for so long.
fn most_by_least(
    lanes: &[Lane],
    time: Duration,
    mut attempt: impl FnMut(&Lane) -> std::io::Result<usize>,
) -> anyhow::Result<f64> {
    let mut moved = vec![0_u64; lanes.len()];
    let start = Instant::now();
    // Who comes first finds the most room in the queue, so each does in its turn.
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
    /// What was to be reached.
    pub fn goals(&self) -> Vec<Goal> {
        let fair = self.to_guest_most_by_least.max(self.to_host_most_by_least);
        let mut goals = vec![Goal {
            goal: format!(
                "of {} busy connections none gets less than half of another",
                self.busy
            ),
            met: Some(fair <= 2.0),
            found: format!(
                "{:.2} to the guest, {:.2} to the host",
                self.to_guest_most_by_least, self.to_host_most_by_least
            ),
        }];
        for (many, what) in [
            (&self.connections, "connections with the host"),
            (&self.siblings, "connections with another machine"),
            (&self.machines, "machines"),
        ] {
            // Where a process may not have as many descriptors, it could not be tried.
            let needed = (many.wanted as f64 * many.broker_descriptors_each) as u64;
            let met = many.count == many.wanted && many.broker_cpu_ms <= many.seconds;
            goals.push(Goal {
                goal: format!(
                    "{} idle {what}, for which the broker does nothing",
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

    /// Prints it.
    pub fn print(&self) {
        self.connections
            .print("connections of one machine with the host");
        self.siblings
            .print("connections of one machine with another");
        self.machines.print("machines on one broker");
        println!(
            "\n{} busy connections in one machine, the most bytes by the least",
            self.busy
        );
        println!("  to the guest  {:.2}", self.to_guest_most_by_least);
        println!("  to the host   {:.2}", self.to_host_most_by_least);
    }
}
