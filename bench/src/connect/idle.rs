//! Many idle connections: what they cost the broker, and whether it still lists, closes and suspends each.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hvsock::{HvListener, HvStream, Lease, PartitionRef, ServiceId, VmId};
use hvsock_client::Client;
use hvsock_client::model::{ConnectionState, NewContainer, PartitionState};
use hvsock_testkit::usage;
use serde::Serialize;
use serde_json::json;

use crate::broker::BrokerProcess;
use crate::cpu;
use crate::worker::{self, Worker};

/// First argument that makes a bench's program hold the accepted ends of connections.
pub const ACCEPTING: &str = "role-hold-accepted";
/// First argument that makes a bench's program hold the connecting ends of connections.
pub const CONNECTING: &str = "role-hold-connected";

/// Connections of one pair of processes.
const EACH: usize = 1000;
/// Connections that are closed.
const CLOSED: usize = 20;
/// Connections that are suspended.
const SUSPENDED: usize = 100;
/// Time for which the broker's CPU time is measured.
const MEASURED: Duration = Duration::from_secs(2);
/// Time for the threads that were just busy to park.
const SETTLE: Duration = Duration::from_millis(1500);
/// Time limit of an operator's change.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// The cost of idle connections, and what an operator can still do with each.
#[derive(Clone, Debug, Serialize)]
pub struct Idle {
    /// The requested count.
    pub wanted: usize,
    /// The actual count.
    pub connections: usize,
    /// Connections of each pair of processes.
    pub of_a_pair: usize,
    /// Broker memory per connection in bytes.
    pub broker_bytes_each: f64,
    /// Broker descriptors per connection.
    pub broker_descriptors_each: f64,
    /// Memory of both ends' processes per connection in bytes; shared pages count in both.
    pub ends_bytes_each: f64,
    /// CPU time of the broker in milliseconds.
    pub broker_cpu_ms: f64,
    /// Duration of that measurement in seconds.
    pub seconds: f64,
    /// How many connections the control API lists as open.
    pub listed: usize,
    /// Milliseconds until the list was there.
    pub list_ms: f64,
    /// How many of a sample were closed by the control API, as their processes saw it.
    pub closed: Checked,
    /// How many of a sample were suspended and resumed, as the control API and their processes saw it.
    pub suspended: Checked,
    /// Why `connections` is less than `wanted`, or a check failed.
    pub failures: Vec<String>,
}

/// How many of a sample behaved as they should.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Checked {
    /// Those that did.
    pub right: usize,
    /// The sample's size.
    pub of: usize,
}

impl Checked {
    /// Whether all did.
    pub fn all(self) -> bool {
        self.of > 0 && self.right == self.of
    }
}

/// One pair of processes that hold connections. The connecting one is dropped first.
struct Pair {
    connecting: Worker,
    accepting: Worker,
    held: usize,
    /// Memory of both since their start, in bytes.
    bytes: u64,
    why_not_more: Option<String>,
}

impl Pair {
    /// Makes `count` connections to the service. Each end has the endpoint of its partition, and the address
    /// of the other end's.
    fn connect(
        service: ServiceId,
        (listening, from): (&Path, VmId),
        (calling, to): (&Path, VmId),
        count: usize,
    ) -> anyhow::Result<Self> {
        let [listening, calling] = [listening, calling].map(|path| path.display().to_string());
        let [from, to] = [from, to].map(|vm| vm.to_string());
        let service = service.to_string();
        let mut accepting = Worker::start(&[ACCEPTING, &listening, &from, &service])?;
        let mut connecting = Worker::start(&[CONNECTING, &calling, &to, &service])?;
        let used = || -> u64 {
            let pids = [accepting.pid(), connecting.pid()];
            pids.map(usage::resident_bytes).iter().sum()
        };
        let before = used();
        let reply = connecting.ask(&format!("connect {count}"))?;
        let (held, why) = reply.split_once(' ').unwrap_or((&reply, ""));
        let held = held.parse()?;
        let accepted: usize = accepting.ask(&format!("accepted {held}"))?.parse()?;
        let used = || -> u64 {
            let pids = [accepting.pid(), connecting.pid()];
            pids.map(usage::resident_bytes).iter().sum()
        };
        let bytes = used().saturating_sub(before);
        let why = match accepted {
            all if all == held => why.to_owned(),
            fewer => format!("{fewer} of {held} connections were accepted {why}"),
        };
        Ok(Self {
            connecting,
            accepting,
            held,
            bytes,
            why_not_more: Some(why).filter(|why| !why.is_empty()),
        })
    }

    fn number(worker: &mut Worker, request: &str) -> anyhow::Result<usize> {
        Ok(worker.ask(request)?.parse()?)
    }
}

/// Connections of a container, which can be suspended. Fields are dropped in this order.
struct Sample {
    pair: Pair,
    service: ServiceId,
    container: PartitionRef,
    _lease: Lease,
}

impl Sample {
    fn connect(client: &Client, root: &Path) -> anyhow::Result<Self> {
        let service = ServiceId::random();
        let lease = Lease::register_at(&root.to_owned().into(), "Idle Benchmark", service, "")?;
        let container: NewContainer = serde_json::from_value(json!({ "name": "bench-idle" }))?;
        let container = client.add_container(&container)?;
        let endpoint = container.endpoint.context("a container without endpoint")?;
        let listening = (root, VmId::CHILDREN);
        let calling = (endpoint.as_path(), VmId::PARENT);
        let pair = Pair::connect(service, listening, calling, SUSPENDED)?;
        if let Some(why) = &pair.why_not_more {
            anyhow::bail!("{why}");
        }
        Ok(Self {
            pair,
            service,
            container: container.id.into(),
            _lease: lease,
        })
    }

    /// Suspends all and resumes them. Returns how many moved a byte then.
    fn suspend(&mut self, client: &Client) -> anyhow::Result<usize> {
        let in_state = |wanted: ConnectionState| -> anyhow::Result<usize> {
            let all = client.connections()?;
            let its = all.iter().filter(|connection| {
                connection.service == self.service && connection.state == wanted
            });
            Ok(its.count())
        };
        client.set_state(&self.container, PartitionState::Paused)?;
        until(|| Ok(in_state(ConnectionState::Suspended)? == SUSPENDED))?;
        Pair::number(&mut self.pair.connecting, "send")?;
        let early = Pair::number(&mut self.pair.accepting, "received")?;
        ensure!(early == 0, "{early} suspended connections moved bytes");
        client.set_state(&self.container, PartitionState::Running)?;
        until(|| Ok(in_state(ConnectionState::Open)? == SUSPENDED))?;
        let mut resumed = 0;
        until(|| {
            Pair::number(&mut self.pair.connecting, "send")?;
            resumed = Pair::number(&mut self.pair.accepting, "received")?;
            Ok(resumed == SUSPENDED)
        })?;
        Ok(resumed)
    }
}

/// Holds `wanted` idle connections on a new broker.
pub fn measure(wanted: usize) -> anyhow::Result<Idle> {
    let broker = BrokerProcess::start()?;
    let root = broker.endpoint();
    let own = (root.as_path(), VmId::LOOPBACK);
    let pair = |count| Pair::connect(ServiceId::random(), own, own, count);
    let client = Client::new(broker.control())?;
    // The baseline includes both, and so what a broker pays once.
    let first = pair(1)?;
    let mut sample = Sample::connect(&client, &root)?;
    let bytes = usage::resident_bytes(broker.pid());
    let descriptors = usage::descriptors(broker.pid()) as u64;
    let mut failures = Vec::new();
    let mut pairs: Vec<Pair> = Vec::new();
    let mut connections = 0;
    while connections < wanted && failures.is_empty() {
        eprint!("\r{connections} idle connections ");
        match pair(EACH.min(wanted - connections)) {
            Ok(pair) => {
                connections += pair.held;
                failures.extend(pair.why_not_more.clone());
                pairs.push(pair);
            }
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    eprintln!("\r{connections} idle connections ");
    let each = |now: u64, then: u64| now.saturating_sub(then) as f64 / connections.max(1) as f64;
    std::thread::sleep(SETTLE);
    let mut idle = Idle {
        wanted,
        connections,
        of_a_pair: EACH,
        broker_bytes_each: each(usage::resident_bytes(broker.pid()), bytes),
        broker_descriptors_each: each(usage::descriptors(broker.pid()) as u64, descriptors),
        ends_bytes_each: each(pairs.iter().map(|pair| pair.bytes).sum(), 0),
        broker_cpu_ms: f64::NAN,
        seconds: MEASURED.as_secs_f64(),
        listed: 0,
        list_ms: f64::NAN,
        closed: Checked::default(),
        suspended: Checked {
            right: 0,
            of: SUSPENDED,
        },
        failures,
    };
    let used = cpu::used_by(broker.pid())?;
    std::thread::sleep(MEASURED);
    let used = cpu::used_by(broker.pid())?.saturating_sub(used);
    idle.broker_cpu_ms = used.as_secs_f64() * 1e3;

    pairs.push(first);
    if let Err(error) = idle.close_some(&client, &mut pairs, sample.service) {
        idle.failures.push(format!("close: {error:#}"));
    }
    match sample.suspend(&client) {
        Ok(resumed) => idle.suspended.right = resumed,
        Err(error) => idle.failures.push(format!("suspend: {error:#}")),
    }
    Ok(idle)
}

impl Idle {
    /// Lists the connections but those of the service `other`, and closes some of them.
    fn close_some(
        &mut self,
        client: &Client,
        pairs: &mut [Pair],
        other: ServiceId,
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        let listed = client.connections()?;
        self.list_ms = start.elapsed().as_secs_f64() * 1e3;
        let listed = listed
            .into_iter()
            .filter(|connection| connection.state == ConnectionState::Open)
            .filter(|connection| connection.service != other);
        let ids: Vec<u64> = listed.map(|connection| connection.id).collect();
        // Without the connection of the baseline.
        self.listed = ids.iter().collect::<HashSet<_>>().len().saturating_sub(1);
        let sample: Vec<u64> = ids
            .iter()
            .copied()
            .step_by((ids.len() / CLOSED).max(1))
            .take(CLOSED)
            .collect();
        self.closed.of = sample.len();
        for id in &sample {
            client.close_connection(*id)?;
        }
        // The list follows as soon as both processes have seen the close.
        until(|| {
            let listed = client.connections()?;
            let mut listed = listed.iter();
            Ok(!listed.any(|connection| sample.contains(&connection.id)))
        })
        .context("closed connections are listed")?;
        // Both processes see the end of exactly these.
        let mut ended = [0, 0];
        until(|| {
            ended = [0, 0];
            for pair in &mut *pairs {
                ended[0] += Pair::number(&mut pair.connecting, "ended")?;
                ended[1] += Pair::number(&mut pair.accepting, "ended")?;
            }
            Ok(ended.iter().all(|ended| *ended >= sample.len()))
        })?;
        ensure!(
            ended == [sample.len(); 2],
            "{} connections ended at the connecting and {} at the accepting process",
            ended[0],
            ended[1]
        );
        self.closed.right = sample.len();
        Ok(())
    }

    /// Prints the results.
    pub fn print(&self) {
        println!(
            "\n{} idle connections, {} of a pair of processes",
            self.connections, self.of_a_pair
        );
        println!(
            "  broker memory each       {:.2} KiB",
            self.broker_bytes_each / 1024.0
        );
        println!(
            "  broker descriptors each  {:.3}",
            self.broker_descriptors_each
        );
        println!(
            "  both ends' memory each   {:.1} KiB",
            self.ends_bytes_each / 1024.0
        );
        println!(
            "  broker CPU time          {:.2} ms in {} s",
            self.broker_cpu_ms, self.seconds
        );
        println!(
            "  listed as open           {} in {:.0} ms",
            self.listed, self.list_ms
        );
        println!(
            "  closed                   {} of {}",
            self.closed.right, self.closed.of
        );
        println!(
            "  suspended and resumed    {} of {}",
            self.suspended.right, self.suspended.of
        );
        for failure in &self.failures {
            println!("  failed: {failure}");
        }
    }
}

/// Repeats `done` until it returns true.
fn until(mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let deadline = Instant::now() + CHANGE_TIMEOUT;
    while !done()? {
        ensure!(
            Instant::now() < deadline,
            "no change within {CHANGE_TIMEOUT:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Body of the accepting process of a pair.
pub fn hold_accepted(arguments: &[&str]) -> anyhow::Result<()> {
    let [endpoint, from, service] = arguments else {
        anyhow::bail!("expected an endpoint, a partition and a service");
    };
    hvsock_sys::limits::raise_descriptors()?;
    let listener = HvListener::options()
        .endpoint(Path::new(endpoint))
        .backlog(EACH as u32)
        .connected_suspend(true)
        .listen((from.parse::<VmId>()?, service.parse::<ServiceId>()?))?;
    let held = std::sync::Mutex::new(Held::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while let Ok((stream, _)) = listener.accept() {
                hvsock_sys::sync::lock(&held).add(stream);
            }
        });
        let served = worker::serve(|words| match words {
            ["accepted", count] => {
                let count = count.parse()?;
                until(|| Ok(hvsock_sys::sync::lock(&held).streams.len() >= count))?;
                Ok(hvsock_sys::sync::lock(&held).streams.len().to_string())
            }
            words => hvsock_sys::sync::lock(&held).answer(words),
        });
        // The accepting thread waits for ever.
        std::process::exit(i32::from(served.is_err()))
    })
}

/// Body of the connecting process of a pair.
pub fn hold_connected(arguments: &[&str]) -> anyhow::Result<()> {
    let [endpoint, target, service] = arguments else {
        anyhow::bail!("expected an endpoint, a partition and a service");
    };
    hvsock_sys::limits::raise_descriptors()?;
    let address = (target.parse::<VmId>()?, service.parse::<ServiceId>()?);
    let mut held = Held::default();
    worker::serve(|words| match words {
        ["connect", count] => {
            let mut why = String::new();
            for _ in 0..count.parse()? {
                let options = HvStream::options().endpoint(Path::new(endpoint));
                match options.connected_suspend(true).connect(address) {
                    Ok(stream) => held.add(stream),
                    Err(error) => {
                        why = error.to_string().replace('\n', " ");
                        break;
                    }
                }
            }
            Ok(format!("{} {why}", held.streams.len()))
        }
        words => held.answer(words),
    })
}

/// The ends that a process holds.
#[derive(Default)]
struct Held {
    streams: Vec<HvStream>,
    received: HashSet<usize>,
}

impl Held {
    fn add(&mut self, stream: HvStream) {
        self.streams.push(stream);
    }

    fn answer(&mut self, words: &[&str]) -> anyhow::Result<String> {
        let blocked = |error: &std::io::Error| error.kind() == ErrorKind::WouldBlock;
        let count = match words {
            ["ended"] => {
                let ended = self
                    .streams
                    .iter()
                    .filter(|stream| match stream.try_read(&mut [0]) {
                        Ok(count) => count == 0,
                        Err(error) => !blocked(&error),
                    });
                ended.count()
            }
            ["send"] => {
                let sent = self
                    .streams
                    .iter()
                    .filter(|stream| stream.try_write(b"x").is_ok());
                sent.count()
            }
            ["received"] => {
                for (index, stream) in self.streams.iter().enumerate() {
                    if stream.try_read(&mut [0]).is_ok_and(|count| count > 0) {
                        self.received.insert(index);
                    }
                }
                self.received.len()
            }
            other => anyhow::bail!("unknown request {other:?}"),
        };
        Ok(count.to_string())
    }
}
