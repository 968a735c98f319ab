//! Measures the latency and rate of connects and the broker's memory per idle connection, against Unix
//! sockets in alternating turns.

#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use hvsock::{HvListener, HvStream, Lease, ServiceId, VmId};
use hvsock_bench::broker::{self, BrokerProcess};
use hvsock_bench::figures::{Spread, percentile, save};
use hvsock_bench::options::{OUT, positive};
use hvsock_bench::plot;
use hvsock_testkit::usage;
use serde::Serialize;

/// Latency and rate of connects, and the cost of an idle connection, against Unix sockets.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench connect")]
struct Arguments {
    /// Measure everything N times in alternating turns.
    #[arg(long, value_name = "N", value_parser = positive, default_value = "15")]
    turns: usize,
    /// Hold at most N idle connections.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    idle: usize,
    /// Folder for connect.json and connect.svg.
    #[arg(long, value_name = "FOLDER", default_value = OUT)]
    out: PathBuf,
}

const HOLD: &str = "role-hold";
/// Connections per helper process, which holds both ends: four descriptors each.
const HELD_PER_HELPER: usize = 2000;

#[derive(Serialize)]
struct Figures {
    turns: usize,
    unix_connect_us_p50: Spread,
    hvsock_connect_us_p50: Spread,
    connect_ratio: Spread,
    /// By the service's name, which the broker resolves in the connect.
    hvsock_connect_by_name_us_p50: Spread,
    by_name_ratio: Spread,
    unix_connections_per_second: Spread,
    hvsock_connections_per_second: Spread,
    idle: Idle,
}

#[derive(Serialize)]
struct Idle {
    wanted: usize,
    connections: usize,
    broker_bytes_each: f64,
    broker_descriptors_each: f64,
    why_not_more: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [broker::ROLE, folder, vms] => return broker::serve(Path::new(folder), vms.parse()?),
        [HOLD, endpoint, count] => return hold(Path::new(endpoint), count.parse()?),
        _ => {}
    }
    let Arguments { turns, idle, out } = Arguments::parse();

    hvsock_sys::limits::raise_descriptors()?;
    let figures = measure(turns, idle)?;
    print(&figures);
    save(&out.join("connect.json"), &figures)?;
    plot::bars(
        &out.join("connect.svg"),
        "Time until both ends have a connection (p50)",
        "µs",
        &[
            ("Unix socket", figures.unix_connect_us_p50),
            ("hvsock", figures.hvsock_connect_us_p50),
        ],
    )?;
    println!(
        "\nsaved as {0}/connect.json and {0}/connect.svg",
        out.display()
    );
    Ok(())
}

fn measure(turns: usize, idle: usize) -> anyhow::Result<Figures> {
    let broker = BrokerProcess::start()?;
    let folder = tempfile::Builder::new().prefix("hvu").tempdir()?;
    let unix = folder.path().join("s");
    let unix_listener = UnixListener::bind(&unix)?;
    let service = ServiceId::random();
    let name = "Connect Benchmark";
    let _lease = Lease::register_at(&broker.endpoint().into(), name, service, "")?;
    let hv_listener = HvListener::options()
        .endpoint(broker.endpoint())
        .backlog(1024)
        .listen((VmId::LOOPBACK, service))?;
    let endpoint = broker.endpoint();
    let hv_connect = move || {
        HvStream::options()
            .endpoint(endpoint.clone())
            .connect((VmId::LOOPBACK, service))
            .map(hold_end)
    };
    let endpoint = broker.endpoint();
    let named_connect = move || {
        HvStream::options()
            .endpoint(endpoint.clone())
            .connect((VmId::LOOPBACK, name))
            .map(hold_end)
    };
    let unix_path = unix.clone();
    let unix_connect = move || UnixStream::connect(&unix_path).map(hold_end);

    let unix_accepted = accept_in_background(move || unix_listener.accept().map(hold_end));
    let hv_accepted = accept_in_background(move || hv_listener.accept().map(hold_end));

    let (mut unix_us, mut hv_us, mut named_us) = (Vec::new(), Vec::new(), Vec::new());
    let (mut unix_rate, mut hv_rate) = (Vec::new(), Vec::new());
    for turn in 0..turns {
        eprint!("\rturn {} of {turns} ", turn + 1);
        unix_us.push(latency(&unix_connect, &unix_accepted)?);
        hv_us.push(latency(&hv_connect, &hv_accepted)?);
        named_us.push(latency(&named_connect, &hv_accepted)?);
        unix_rate.push(rate(&unix_connect, &unix_accepted)?);
        hv_rate.push(rate(&hv_connect, &hv_accepted)?);
    }
    eprintln!();
    Ok(Figures {
        turns,
        unix_connect_us_p50: Spread::of(unix_us.iter().copied()),
        hvsock_connect_us_p50: Spread::of(hv_us.iter().copied()),
        connect_ratio: Spread::of_ratio(&hv_us, &unix_us),
        hvsock_connect_by_name_us_p50: Spread::of(named_us.iter().copied()),
        by_name_ratio: Spread::of_ratio(&named_us, &hv_us),
        unix_connections_per_second: Spread::of(unix_rate),
        hvsock_connections_per_second: Spread::of(hv_rate),
        idle: hold_idle(idle)?,
    })
}

/// One end of a connection. Dropping it closes it.
type OpenEnd = Box<dyn Send>;

fn hold_end<T: Send + 'static>(end: T) -> OpenEnd {
    Box::new(end)
}

/// A thread that accepts connections and reports each with its time.
struct Acceptor {
    /// Sets the receiver of the reports; `None` disables them.
    report_to: Sender<Option<Sender<(Instant, OpenEnd)>>>,
    count: Arc<AtomicU64>,
}

fn accept_in_background(
    accept: impl Fn() -> std::io::Result<OpenEnd> + Send + 'static,
) -> Acceptor {
    let (report_to, changes) = channel::<Option<Sender<(Instant, OpenEnd)>>>();
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        let mut receiver = None;
        while let Ok(held) = accept() {
            let now = Instant::now();
            counted.fetch_add(1, Ordering::Relaxed);
            while let Ok(change) = changes.try_recv() {
                receiver = change;
            }
            if let Some(receiver) = &receiver {
                let _ = receiver.send((now, held));
            }
        }
    });
    Acceptor { report_to, count }
}

/// Pause between two timed connects.
const PAUSE: Duration = Duration::from_micros(300);

/// Median time in microseconds from the start of a connect until both ends have the connection.
fn latency(
    connect: &impl Fn() -> std::io::Result<OpenEnd>,
    acceptor: &Acceptor,
) -> anyhow::Result<f64> {
    let (reports, reported) = channel();
    acceptor.report_to.send(Some(reports))?;
    let mut times = Vec::new();
    for _ in 0..400 {
        let start = Instant::now();
        let held = connect()?;
        let connected = Instant::now();
        let (accepted, other) = reported.recv_timeout(Duration::from_secs(10))?;
        times.push(connected.max(accepted).duration_since(start).as_secs_f64() * 1e6);
        drop((held, other));
        // Excludes work that a connect and a close leave behind; the rate includes it. It spins, because a
        // sleep would add the wakeup of a processor to the next connect.
        let resume = Instant::now() + PAUSE;
        while Instant::now() < resume {
            std::hint::spin_loop();
        }
    }
    acceptor.report_to.send(None)?;
    Ok(percentile(&mut times, 0.5))
}

/// Connections per second that two threads make and close.
fn rate(
    connect: &(impl Fn() -> std::io::Result<OpenEnd> + Sync),
    acceptor: &Acceptor,
) -> anyhow::Result<f64> {
    const LENGTH: Duration = Duration::from_millis(400);
    let stop = AtomicBool::new(false);
    let before = acceptor.count.load(Ordering::Relaxed);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        match connect() {
                            Ok(held) => drop(held),
                            // The backlog is full: the accepting end limits the rate.
                            Err(_) => std::thread::yield_now(),
                        }
                    }
                })
            })
            .collect();
        std::thread::sleep(LENGTH);
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            let _ = client.join();
        }
    });
    let count = acceptor.count.load(Ordering::Relaxed) - before;
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// Holds idle connections in a new broker and measures its memory and descriptors.
fn hold_idle(wanted: usize) -> anyhow::Result<Idle> {
    let broker = BrokerProcess::start()?;
    // The first connection has one-time costs, so the baseline includes it.
    let mut helpers = vec![Helper::start(&broker.endpoint(), 1)?];
    let bytes = usage::resident_bytes(broker.pid());
    let descriptors = usage::descriptors(broker.pid()) as u64;
    let (mut connections, mut why_not_more) = (0, None);
    while connections < wanted && why_not_more.is_none() {
        let helper = Helper::start(
            &broker.endpoint(),
            HELD_PER_HELPER.min(wanted - connections),
        )?;
        connections += helper.held;
        why_not_more.clone_from(&helper.why_not_more);
        helpers.push(helper);
    }
    let each = |now: u64, then: u64| now.saturating_sub(then) as f64 / connections.max(1) as f64;
    Ok(Idle {
        wanted,
        connections,
        broker_bytes_each: each(usage::resident_bytes(broker.pid()), bytes),
        broker_descriptors_each: each(usage::descriptors(broker.pid()) as u64, descriptors),
        why_not_more,
    })
}

/// A process that holds idle connections.
struct Helper {
    child: Child,
    held: usize,
    why_not_more: Option<String>,
}

impl Helper {
    fn start(endpoint: &Path, count: usize) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(HOLD)
            .arg(endpoint)
            .arg(count.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
        let (held, why) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let why_not_more = Some(why.to_owned()).filter(|why| !why.is_empty());
        Ok(Self {
            child,
            held: held.parse()?,
            why_not_more,
        })
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Body of a helper process: connects to itself `count` times, prints how many succeeded, and holds the
/// connections until end of file on stdin.
fn hold(endpoint: &Path, count: usize) -> anyhow::Result<()> {
    hvsock_sys::limits::raise_descriptors()?;
    let address = (VmId::LOOPBACK, ServiceId::random());
    let listener = HvListener::options().endpoint(endpoint).listen(address)?;
    let mut held = Vec::with_capacity(count);
    let mut why = String::new();
    for _ in 0..count {
        match HvStream::options().endpoint(endpoint).connect(address) {
            Ok(stream) => held.push((stream, listener.accept()?)),
            Err(error) => {
                why = error.to_string().replace('\n', " ");
                break;
            }
        }
    }
    println!("{} {why}", held.len());
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn print(figures: &Figures) {
    let Figures { turns, idle, .. } = figures;
    println!("one interleaved run of {turns} turns: median (min to max)\n");
    println!("connect and accept, p50, µs");
    println!("  Unix socket   {:.1}", figures.unix_connect_us_p50);
    println!("  hvsock        {:.1}", figures.hvsock_connect_us_p50);
    println!("  ratio         {:.2}", figures.connect_ratio);
    println!(
        "  by name       {:.1}, {:.2} of the time by GUID",
        figures.hvsock_connect_by_name_us_p50, figures.by_name_ratio
    );
    println!("connections per second");
    println!("  Unix socket   {:.0}", figures.unix_connections_per_second);
    println!(
        "  hvsock        {:.0}",
        figures.hvsock_connections_per_second
    );
    println!("{} idle connections", idle.connections);
    println!(
        "  broker memory each       {:.1} KiB",
        idle.broker_bytes_each / 1024.0
    );
    println!(
        "  broker descriptors each  {:.2}",
        idle.broker_descriptors_each
    );
    if let Some(why) = &idle.why_not_more {
        println!("  not {}: {why}", idle.wanted);
    }
}
