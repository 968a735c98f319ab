//! Turns of connects over both subjects.

use std::thread;
use std::time::{Duration, Instant};

use hvsock::ServiceId;

use super::client::Client;
use super::server::Server;
use super::{Addresses, Load, Subject};
use crate::broker::BrokerProcess;
use crate::figures::percentile;

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Number of turns.
    pub turns: usize,
    /// Time in which connections are made and closed, for each load and subject in one turn.
    pub slice: Duration,
}

/// Pause between the loads of a turn and its first connects.
const SETTLE: Duration = Duration::from_millis(300);
/// Processes that connect for the first time, of each subject in one turn.
const FRESH: usize = 5;
/// Connects of each thread before the measured ones, so that the pair has talked before.
const WARM_UP: usize = 3;

/// The measured values of one subject, one for each turn.
#[derive(Clone, Debug, Default)]
pub struct Values {
    /// Median microseconds of a connect.
    pub p50_us: Vec<f64>,
    /// 99th percentile in microseconds.
    pub p99_us: Vec<f64>,
    /// Connections per second.
    pub per_second: Vec<f64>,
}

/// What one run has measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// For each of [`Load::ALL`], the values of [`Subject::BOTH`].
    pub loads: Vec<[Values; 2]>,
    /// One client's connects by name, and those by GUID of the same turn.
    pub by_name: [Vec<f64>; 2],
    /// Median microseconds of the first connect of a process, of [`Subject::BOTH`].
    pub first_us: [Vec<f64>; 2],
}

/// Broker, server and clients. Fields are dropped in this order.
#[derive(Debug)]
pub struct TestBed {
    clients: Vec<Client>,
    server: Server,
    addresses: Addresses,
    _folder: tempfile::TempDir,
    broker: BrokerProcess,
}

impl TestBed {
    /// Starts a broker, the server and as many clients as the largest load needs.
    pub fn start() -> anyhow::Result<Self> {
        let broker = BrokerProcess::start()?;
        let folder = tempfile::Builder::new().prefix("hvu").tempdir()?;
        let addresses = Addresses {
            endpoint: broker.endpoint(),
            unix: folder.path().join("s"),
            timed: ServiceId::random(),
            silent: ServiceId::random(),
        };
        let server = Server::start(&addresses)?;
        let most = Load::ALL.iter().filter(|load| load.processes);
        let most = most.map(|load| load.clients).max().unwrap_or(0).max(1);
        let clients = (0..most).map(|_| Client::start(&addresses));
        Ok(Self {
            clients: clients.collect::<anyhow::Result<_>>()?,
            server,
            addresses,
            _folder: folder,
            broker,
        })
    }

    /// The ids of all its processes.
    pub fn processes(&self) -> Vec<u32> {
        let clients = self.clients.iter().map(Client::pid);
        clients
            .chain([self.server.pid(), self.broker.pid()])
            .collect()
    }

    /// The processes of a load, and the threads of each.
    fn split(&mut self, load: Load) -> (&mut [Client], usize) {
        if load.processes {
            (&mut self.clients[..load.clients], 1)
        } else {
            (&mut self.clients[..1], load.clients)
        }
    }

    /// Microseconds of the connects of a load.
    fn times(
        &mut self,
        load: Load,
        over: Subject,
        connects: usize,
        pause: Duration,
    ) -> anyhow::Result<Vec<f64>> {
        let (clients, threads) = self.split(load);
        for client in &mut *clients {
            client.start_timed(over, threads, connects, pause)?;
        }
        let times = clients.iter_mut().map(Client::times);
        Ok(times.collect::<anyhow::Result<Vec<_>>>()?.concat())
    }

    fn latency(&mut self, load: Load, over: Subject) -> anyhow::Result<Vec<f64>> {
        self.times(load, over, WARM_UP, Duration::ZERO)?;
        self.times(load, over, load.connects(), load.pause())
    }

    /// Connections per second that the server accepts.
    fn rate(&mut self, load: Load, over: Subject, slice: Duration) -> anyhow::Result<f64> {
        let (start, before) = (Instant::now(), self.server.accepted(over)?);
        let (clients, threads) = self.split(load);
        for client in &mut *clients {
            client.start_rate(over, threads, slice)?;
        }
        let mut last = String::new();
        for client in clients {
            last = client.made()?.1;
        }
        let count = self.server.accepted(over)?.saturating_sub(before);
        let name = load.name();
        anyhow::ensure!(count > 0, "{name}: no connection was accepted: {last}");
        Ok(count as f64 / start.elapsed().as_secs_f64())
    }

    /// Microseconds of the first connect of a new process.
    fn first(&self, over: Subject) -> anyhow::Result<f64> {
        let mut client = Client::start(&self.addresses)?;
        client.start_timed(over, 1, 1, Duration::ZERO)?;
        let times = client.times()?;
        times
            .first()
            .copied()
            .ok_or_else(|| anyhow::anyhow!("no time"))
    }
}

/// Measures every load over both subjects, `effort.turns` times, and in each turn in the other order.
pub fn run(
    test_bed: &mut TestBed,
    effort: Effort,
    progress: impl Fn(usize),
) -> anyhow::Result<Measured> {
    let mut measured = Measured {
        loads: vec![Default::default(); Load::ALL.len()],
        ..Measured::default()
    };
    for turn in 0..effort.turns {
        progress(turn + 1);
        let mut places = [0, 1];
        places.rotate_left(turn % 2);
        for (load, values) in Load::ALL.into_iter().zip(&mut measured.loads) {
            for place in places {
                let over = Subject::BOTH[place];
                let mut times = test_bed.latency(load, over)?;
                values[place].p50_us.push(percentile(&mut times, 0.5));
                values[place].p99_us.push(percentile(&mut times, 0.99));
                if load == Load::ONE && over == Subject::Hvsock {
                    let by_guid = percentile(&mut times, 0.5);
                    let mut named = test_bed.latency(load, Subject::HvsockByName)?;
                    measured.by_name[0].push(percentile(&mut named, 0.5));
                    measured.by_name[1].push(by_guid);
                }
            }
            for place in places {
                let over = Subject::BOTH[place];
                let rate = test_bed.rate(load, over, effort.slice)?;
                values[place].per_second.push(rate);
            }
        }
        // What the loads have left behind in the broker and the server is not measured with them.
        thread::sleep(SETTLE);
        let mut first = [const { Vec::new() }; 2];
        for _ in 0..FRESH {
            for place in places {
                first[place].push(test_bed.first(Subject::BOTH[place])?);
            }
        }
        for (place, mut times) in first.into_iter().enumerate() {
            measured.first_us[place].push(percentile(&mut times, 0.5));
        }
    }
    Ok(measured)
}
