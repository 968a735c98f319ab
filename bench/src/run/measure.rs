//! Turns of all ways.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use super::Way;
use super::program::{Addresses, CLIENT, SERVER};
use crate::broker::BrokerProcess;
use crate::figures::percentile;
use crate::worker::Worker;

/// The first port. Each way has two.
const FIRST_PORT: u32 = 5000;
/// The connects of a way in one turn, after some that are not measured.
const CONNECTS: usize = 100;
const WARM_UP: usize = 3;
/// Times of calls in one turn, each of many.
const CALLS: usize = 20;
/// The bytes of a transfer.
const BYTES: u64 = 32 << 20;
/// The round trips of a way in one turn.
const ROUND_TRIPS: usize = 300;

/// The values of one way, one for each turn.
#[derive(Clone, Debug, Default)]
pub struct Values {
    /// Median microseconds of `getsockname` on a TCP socket.
    pub foreign_us: Vec<f64>,
    /// The same on a socket of the way's own family.
    pub own_us: Vec<f64>,
    /// Median microseconds of a connect, accept and close.
    pub connect_us: Vec<f64>,
    /// 10⁹ bytes per second.
    pub gb_per_s: Vec<f64>,
    /// Median microseconds of a round trip.
    pub round_trip_us: Vec<f64>,
}

/// The figures that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    Foreign,
    Own,
    Connect,
    Throughput,
    RoundTrip,
}

impl Figure {
    const ALL: [Self; 5] = [
        Self::Foreign,
        Self::Own,
        Self::Connect,
        Self::Throughput,
        Self::RoundTrip,
    ];
}

/// One pair of processes. The client is dropped first.
#[derive(Debug)]
struct Pair {
    client: Worker,
    _server: Worker,
}

/// The broker, and a pair of processes for each way. Fields are dropped in this order.
#[derive(Debug)]
pub struct TestBed {
    pairs: [Pair; Way::ALL.len()],
    _folder: tempfile::TempDir,
    _broker: BrokerProcess,
}

impl TestBed {
    /// Starts all. `hvsock` is the command.
    pub fn start(hvsock: &Path) -> anyhow::Result<Self> {
        let broker = BrokerProcess::start()?;
        let folder = tempfile::Builder::new().prefix("hvr").tempdir()?;
        let pair = |way: Way| -> anyhow::Result<Pair> {
            let addresses = Addresses {
                way,
                endpoint: broker.endpoint(),
                folder: folder.path().to_owned(),
                port: FIRST_PORT + 2 * way.index() as u32,
            };
            let start = |role| {
                let command = command(way, hvsock, broker.folder())?;
                let started = addresses.start(role, command);
                started.with_context(|| format!("cannot start a pair: {}", way.name()))
            };
            let server = start(SERVER)?;
            let client = start(CLIENT)?;
            Ok(Pair {
                client,
                _server: server,
            })
        };
        let pairs = Way::ALL.into_iter().map(pair);
        let pairs: Vec<Pair> = pairs.collect::<anyhow::Result<_>>()?;
        Ok(Self {
            pairs: pairs.try_into().ok().context("not all pairs")?,
            _folder: folder,
            _broker: broker,
        })
    }

    /// Measures a figure of one way once.
    fn once(&mut self, figure: Figure, way: Way, values: &mut Values) -> anyhow::Result<()> {
        let client = &mut self.pairs[way.index()].client;
        let mut median_us = |request: &str| -> anyhow::Result<f64> {
            let reply = client.ask(request)?;
            let times = reply.split(' ').map(|time| Ok(time.parse::<f64>()? / 1e3));
            let mut times = times.collect::<anyhow::Result<Vec<_>>>()?;
            Ok(percentile(&mut times, 0.5))
        };
        match figure {
            Figure::Foreign => {
                let took = median_us(&format!("foreign {CALLS}"))?;
                values.foreign_us.push(took);
            }
            Figure::Own => {
                let took = median_us(&format!("own {CALLS}"))?;
                values.own_us.push(took);
            }
            Figure::Connect => {
                median_us(&format!("connect {WARM_UP}"))?;
                let took = median_us(&format!("connect {CONNECTS}"))?;
                values.connect_us.push(took);
            }
            Figure::Throughput => {
                let took = median_us(&format!("send {BYTES}"))?;
                values.gb_per_s.push(BYTES as f64 / took / 1e3);
            }
            Figure::RoundTrip => {
                let took = median_us(&format!("echo {ROUND_TRIPS}"))?;
                values.round_trip_us.push(took);
            }
        }
        Ok(())
    }
}

/// The command that starts a program of a way, whose arguments follow.
fn command(way: Way, hvsock: &Path, folder: &Path) -> anyhow::Result<Command> {
    let program = std::env::current_exe()?;
    let Some(option) = way.option() else {
        return Ok(Command::new(program));
    };
    let mut command = Command::new(hvsock);
    command.arg("--dir").arg(folder).args(["run", option, "--"]);
    command.arg(program);
    Ok(command)
}

/// Measures all figures of all ways, `turns` times, beginning with another way in each.
pub fn run(
    test_bed: &mut TestBed,
    turns: usize,
    progress: impl Fn(usize),
) -> anyhow::Result<Vec<Values>> {
    let mut all = vec![Values::default(); Way::ALL.len()];
    for turn in 0..turns {
        progress(turn + 1);
        for figure in Figure::ALL {
            for at in 0..Way::ALL.len() {
                let way = Way::ALL[(at + turn) % Way::ALL.len()];
                test_bed.once(figure, way, &mut all[way.index()])?;
            }
        }
    }
    Ok(all)
}
