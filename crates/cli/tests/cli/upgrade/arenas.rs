//! Connections in arenas, of two processes and of a guest and a process, across upgrades.
//!
//! The connecting process is this test program once more, in a container's partition, so that it can be killed and its
//! partition paused.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hvsock::{ConnectOptions, Endpoint, HvListener, HvStream, ServiceId, VmId};
use hvsock_testkit::guest::{Guest, GuestStream, Options};
use serde_json::Value;

use super::World;
use crate::util::{Completed, Running, TIMEOUT, eventually};

/// The service for processes, and that for guests.
const PORTS: [u32; 2] = [5000, 5001];
/// The VM's context id.
const CID: u64 = 3;
/// The environment variable with the endpoint, if this process is the connecting one of a test.
const ENDPOINT: &str = "HVSOCK_TEST_UPGRADE_ENDPOINT";
/// How many connections that process has that transfer, and how many that are idle.
const COUNT: &str = "HVSOCK_TEST_UPGRADE_COUNT";
/// How long a read may take.
const LONGEST: Duration = Duration::from_secs(30);
/// Threads that transfer.
const THREADS: usize = 4;

/// The byte at a position of every stream.
fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

/// A connection to a server that sends everything back, and how much it has sent back.
struct Echoed<S> {
    stream: S,
    position: u64,
}

impl<S> Echoed<S>
where
    for<'a> &'a S: Read + Write,
{
    fn new(stream: S) -> Self {
        Self {
            stream,
            position: 0,
        }
    }

    /// Sends some bytes, and checks that exactly these come back.
    fn exchange(&mut self, len: usize) -> io::Result<()> {
        let bytes: Vec<u8> = (self.position..).take(len).map(byte).collect();
        (&self.stream).write_all(&bytes)?;
        let mut back = vec![0; len];
        (&self.stream).read_exact(&mut back)?;
        assert!(back == bytes, "the bytes from {} on", self.position);
        self.position += len as u64;
        Ok(())
    }
}

/// Connections that transfer in both directions all the time, and others that are idle.
struct Load<S> {
    idle: Mutex<Vec<Echoed<S>>>,
    busy: Vec<Mutex<Vec<Echoed<S>>>>,
    /// Connects, and how often each thread has exchanged bytes with all of its connections.
    connects: AtomicU64,
    rounds: Vec<AtomicU64>,
    stops: AtomicBool,
}

impl<S: Send> Load<S>
where
    for<'a> &'a S: Read + Write,
{
    /// Transfers with `count` connections each, and connects all the time, while `action` runs.
    fn run<T>(
        count: usize,
        connect: &(impl Fn() -> S + Sync),
        close: &(impl Fn(S) + Sync),
        action: impl FnOnce(&Self) -> T,
    ) -> T {
        let echoed = |_| {
            let mut echoed = Echoed::new(connect());
            echoed.exchange(5).unwrap();
            echoed
        };
        let mut busy: Vec<Vec<_>> = (0..THREADS).map(|_| Vec::new()).collect();
        for number in 0..count {
            busy[number % THREADS].push(echoed(number));
        }
        let load = Self {
            idle: Mutex::new((0..count).map(echoed).collect()),
            busy: busy.into_iter().map(Mutex::new).collect(),
            connects: AtomicU64::new(0),
            rounds: (0..THREADS).map(|_| AtomicU64::new(0)).collect(),
            stops: AtomicBool::new(false),
        };
        let result = thread::scope(|scope| {
            for (streams, rounds) in load.busy.iter().zip(&load.rounds) {
                scope.spawn(|| {
                    let mut streams = streams.lock().unwrap();
                    let mut len = 1;
                    while !load.stops.load(Ordering::Relaxed) {
                        for stream in streams.iter_mut() {
                            len = len * 7 % 20_011;
                            stream.exchange(len).unwrap();
                        }
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            scope.spawn(|| {
                while !load.stops.load(Ordering::Relaxed) {
                    let mut stream = Echoed::new(connect());
                    stream.exchange(9).unwrap();
                    close(stream.stream);
                    load.connects.fetch_add(1, Ordering::Relaxed);
                    thread::yield_now();
                }
            });
            let result = action(&load);
            load.stops.store(true, Ordering::Relaxed);
            result
        });
        let busy = load.busy.into_iter().map(|one| one.into_inner().unwrap());
        for stream in load
            .idle
            .into_inner()
            .unwrap()
            .into_iter()
            .chain(busy.flatten())
        {
            close(stream.stream);
        }
        result
    }

    /// Waits until every connection has exchanged bytes after now, and a new one was opened.
    fn check(&self) {
        for stream in self.idle.lock().unwrap().iter_mut() {
            stream.exchange(3).unwrap();
        }
        let all = || self.rounds.iter().chain([&self.connects]);
        let before: Vec<_> = all().map(|one| one.load(Ordering::Relaxed)).collect();
        eventually("all connections transfer", || {
            let mut after = all().zip(&before);
            // The round under way began before.
            after.all(|(one, before)| one.load(Ordering::Relaxed) > before + 1)
        });
    }
}

/// A server that sends back what it reads, in this process.
#[derive(Default)]
struct Server {
    open: AtomicUsize,
    lost: Mutex<Vec<io::Error>>,
}

impl Server {
    fn start(endpoint: Endpoint, port: u32) -> Arc<Self> {
        let listener = HvListener::options()
            .endpoint(endpoint)
            .backlog(128)
            .connected_suspend(true)
            .listen((VmId::WILDCARD, ServiceId::from_port(port)));
        let (server, listener) = (Arc::new(Self::default()), listener.unwrap());
        let accepting = Arc::clone(&server);
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let server = Arc::clone(&accepting);
                server.open.fetch_add(1, Ordering::SeqCst);
                let echo = move || {
                    if let Err(error) = echo(&stream) {
                        server.lost.lock().unwrap().push(error);
                    }
                    drop(stream);
                    server.open.fetch_sub(1, Ordering::SeqCst);
                };
                let thread = thread::Builder::new().stack_size(256 << 10);
                thread.spawn(echo).unwrap();
            }
        });
        server
    }

    fn lost(&self) -> Vec<String> {
        let lost = std::mem::take(&mut *self.lost.lock().unwrap());
        lost.iter().map(ToString::to_string).collect()
    }
}

fn echo(stream: &HvStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match (&mut &*stream).read(&mut buffer)? {
            0 => return stream.shutdown(std::net::Shutdown::Write),
            count => (&mut &*stream).write_all(&buffer[..count])?,
        }
    }
}

fn close(stream: HvStream) {
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let rest = (&mut &stream).read(&mut [0]);
    assert_eq!(rest.unwrap(), 0);
    drop(stream);
}

fn bounded(stream: HvStream) -> HvStream {
    stream.set_read_timeout(Some(LONGEST)).unwrap();
    stream.set_write_timeout(Some(LONGEST)).unwrap();
    stream
}

/// Connects until a connection is in an arena, and returns that one: the listener has to accept one before.
fn acquaint(connect: impl Fn() -> HvStream) -> HvStream {
    let mut in_arena = None;
    eventually("a connection is in an arena", || {
        let stream = connect();
        let mut echoed = Echoed::new(stream);
        echoed.exchange(1).unwrap();
        let is_in_arena = echoed.stream.is_in_arena();
        in_arena = Some(echoed.stream).filter(|_| is_in_arena);
        is_in_arena
    });
    in_arena.unwrap()
}

/// Acts as the connecting process of a test, if there is one; on its own it tests nothing.
#[test]
fn connecting_process() {
    let Some(endpoint) = std::env::var_os(ENDPOINT) else {
        return;
    };
    let count: usize = std::env::var(COUNT).unwrap().parse().unwrap();
    let options: ConnectOptions = HvStream::options()
        .endpoint(PathBuf::from(endpoint))
        .connected_suspend(true);
    let address = (VmId::PARENT, ServiceId::from_port(PORTS[0]));
    let connect = || {
        loop {
            match options.connect(address) {
                Ok(stream) => return bounded(stream),
                // Its partition is paused.
                Err(error) if error.kind() == io::ErrorKind::NetworkDown => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    let _first = acquaint(connect);
    // The harness writes to the same pipe.
    let say = |text: String| writeln!(io::stdout(), "\nsays: {text}").unwrap();
    Load::run(count, &connect, &close, |load| {
        let is_in_arena = |one: &&Echoed<HvStream>| one.stream.is_in_arena();
        let in_arenas = load.idle.lock().unwrap().iter().filter(is_in_arena).count();
        say(format!("ready {in_arenas}"));
        for line in io::stdin().lines() {
            match line.unwrap().as_str() {
                "check" => load.check(),
                "lost" => {
                    let mut idle = load.idle.lock().unwrap();
                    let mut lost = idle.extract_if(.., |one| one.exchange(3).is_err());
                    say(format!("lost {}", lost.by_ref().count()));
                    continue;
                }
                "end" => break,
                other => panic!("{other}"),
            }
            say("done".into());
        }
    });
    say("ended".into());
}

/// The connecting process of a test.
struct Process(Running);

impl Process {
    /// Starts it in the container `box`.
    fn start(world: &World, count: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let test = "upgrade::arenas::connecting_process";
        command.args([test, "--exact", "--nocapture"]);
        let endpoint = world.dir().join("containers/box/endpoint");
        command
            .env(ENDPOINT, endpoint)
            .env(COUNT, count.to_string());
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Self(Running::start(piped));
        assert_eq!(process.says(), format!("ready {count}"));
        process
    }

    fn says(&mut self) -> String {
        loop {
            let line = self.0.line();
            if let Some(text) = line.strip_prefix("says: ") {
                return text.to_owned();
            }
        }
    }

    fn ask(&mut self, command: &str) -> String {
        self.0.write(format!("{command}\n").as_bytes());
        self.says()
    }
}

/// A broker with a container and a VM whose guest runs, and servers for both.
struct Stage {
    world: World,
    servers: [Arc<Server>; 2],
    guest: Guest,
}

impl Stage {
    fn new() -> Self {
        Self::in_world(World::new())
    }

    fn in_world(world: World) -> Self {
        world.ok(&["container", "add", "box"]);
        world.ok(&["vm", "add", "web", "--cid", "3"]);
        let ports = ["processes", "guests"].into_iter().zip(PORTS);
        for (name, port) in ports {
            world.ok(&["service", "register", name, "--port", &port.to_string()]);
        }
        let guest = Guest::start(&world.dir().join("vm/web.sock"), Options::new(CID));
        let servers = PORTS.map(|port| Server::start(world.endpoint(), port));
        Self {
            world,
            servers,
            guest: guest.unwrap(),
        }
    }

    /// A connection from the guest.
    fn connect(&self) -> GuestStream {
        let stream = self.guest.connect(PORTS[1]).unwrap();
        stream.set_read_timeout(Some(LONGEST));
        stream.set_write_timeout(Some(LONGEST));
        stream
    }

    fn connections(&self) -> Vec<Value> {
        match self.world.json(&["connections", "--json"]) {
            Value::Array(all) => all,
            other => panic!("{other}"),
        }
    }

    fn in_arenas(&self) -> usize {
        let all = self.connections();
        all.iter().filter(|one| one["transport"] == "arena").count()
    }

    /// What is charged to each owner.
    fn charges(&self) -> Value {
        let status = self.world.json(&["status", "--json"]);
        let mut charges = serde_json::Map::new();
        for owner in status["status"]["descriptors"]["owners"]
            .as_array()
            .unwrap()
        {
            charges.insert(
                owner["owner"].as_str().unwrap().into(),
                owner["used"].clone(),
            );
        }
        charges.into()
    }

    fn lost(&self) -> Vec<String> {
        self.servers
            .iter()
            .flat_map(|server| server.lost())
            .collect()
    }
}

fn close_guests(stream: GuestStream) {
    let reason = stream.close(TIMEOUT).unwrap();
    assert_eq!(reason, hvsock_testkit::guest::CloseReason::Clean);
}

#[test]
fn hundreds_of_connections_in_arenas_go_on_across_upgrades_while_others_come_and_go() {
    const PROCESSES: usize = 100;
    const GUESTS: usize = 50;
    let stage = Stage::new();
    let rounds = std::env::var("HVSOCK_TEST_UPGRADES");
    let rounds: u32 = rounds.map_or(20, |rounds| rounds.parse().unwrap());
    stage.world.upgrade();
    let before = stage.charges();
    let mut process = Process::start(&stage.world, PROCESSES);
    let connect = || stage.connect();
    Load::run(GUESTS, &connect, &close_guests, |guests| {
        // All but the first ones.
        let least = 2 * (PROCESSES + GUESTS) - 5;
        assert!(stage.in_arenas() >= least, "{}", stage.in_arenas());
        for _ in 0..rounds {
            stage.world.upgrade();
            assert_eq!(process.ask("check"), "done");
            guests.check();
            assert_eq!(stage.lost(), [""; 0]);
        }
        assert!(stage.in_arenas() >= least, "{}", stage.in_arenas());
    });
    assert_eq!(process.ask("end"), "ended");
    assert!(process.0.end().success());
    eventually("all connections end", || stage.connections().is_empty());
    assert_eq!(stage.lost(), [""; 0]);
    eventually("the budget is returned", || {
        let after = stage.charges();
        // The guest keeps the arena that it got last.
        ["partition box", "operators"]
            .iter()
            .all(|owner| after[owner] == before[owner])
    });
    assert_eq!(stage.guest.protocol_violations(), [""; 0]);
}

#[test]
fn connections_in_arenas_from_before_an_upgrade_are_closed_suspended_and_ended_after_it() {
    const COUNT: usize = 20;
    let stage = Stage::new();
    let charges = stage.charges();
    let mut process = Process::start(&stage.world, COUNT);
    let processes = &stage.servers[0];
    let idle = |stage: &Stage| {
        let mut idle = stage.connections();
        idle.retain(|one| one["transport"] == "arena");
        idle
    };
    let before = idle(&stage);
    stage.world.upgrade();
    let after = idle(&stage);
    let ids = |all: &[Value]| -> Vec<u64> {
        let ids = all.iter().map(|one| one["id"].as_u64().unwrap());
        ids.collect()
    };
    let kept: Vec<u64> = ids(&before)
        .into_iter()
        .filter(|id| ids(&after).contains(id))
        .collect();
    assert!(kept.len() >= 2 * COUNT, "{before:?} {after:?}");
    for one in &after {
        let was = before.iter().find(|was| was["id"] == one["id"]);
        if let Some(was) = was {
            assert!(one["bytes_sent"].as_u64() >= was["bytes_sent"].as_u64());
            assert!(one["age_seconds"].as_f64() >= was["age_seconds"].as_f64());
        }
    }
    // A pause of one end suspends all, and no end wants to be reset.
    stage.world.ok(&["container", "pause", "box"]);
    eventually("they are suspended", || {
        let all = stage.connections();
        let mut known = all
            .iter()
            .filter(|one| kept.contains(&one["id"].as_u64().unwrap()));
        known.all(|one| one["state"] == "suspended")
    });
    stage.world.ok(&["container", "resume", "box"]);
    assert_eq!(process.ask("check"), "done");
    assert_eq!(process.ask("lost"), "lost 0");
    // What an idle one has sent so far.
    let sent = 5 + 3 + 3;
    let quiet = |all: Vec<Value>| {
        let mut all = all.into_iter().filter(|one| one["bytes_sent"] == sent);
        all.find(|one| kept.contains(&one["id"].as_u64().unwrap()))
    };
    let closed = quiet(stage.connections()).unwrap()["id"].to_string();
    stage.world.ok(&["connections", "close", &closed]);
    assert_eq!(process.ask("lost"), "lost 1");
    eventually("the other end is told", || {
        !processes.lost.lock().unwrap().is_empty()
    });
    let lost = stage.lost();
    assert!(lost.len() == 1 && lost[0].contains("operator"), "{lost:?}");
    // Its process dies.
    let open = processes.open.load(Ordering::SeqCst);
    assert!(open >= 2 * COUNT - 1, "{open}");
    process.0.kill();
    eventually("all of its connections end", || {
        processes.open.load(Ordering::SeqCst) == 0
    });
    eventually("the budget is returned", || stage.charges() == charges);
    assert_eq!(stage.connections().len(), 0);
}

/// Upgrades a broker with arenas while one of both sides fails. Connections and arenas go on, whichever runs then.
fn check_fault(faults: &str, goes_on: bool) {
    let mut stage = Stage::in_world(World::faulty(faults));
    let first = stage.world.pid();
    let options = HvStream::options().endpoint(stage.world.endpoint());
    let address = (VmId::LOOPBACK, ServiceId::from_port(PORTS[0]));
    let connect = || bounded(options.connect(address).unwrap());
    let mut stream = Echoed::new(acquaint(connect));
    let mut from_guest = Vec::new();
    eventually("a connection of the guest is in an arena", || {
        let mut echoed = Echoed::new(stage.connect());
        echoed.exchange(5).unwrap();
        from_guest.push(echoed);
        stage.in_arenas() >= 2
    });
    let transfer = |streams: &mut Vec<Echoed<GuestStream>>, stream: &mut Echoed<HvStream>| {
        stream.exchange(9000).unwrap();
        for stream in streams {
            stream.exchange(9000).unwrap();
        }
    };
    transfer(&mut from_guest, &mut stream);
    let in_arenas = stage.in_arenas();
    let mut upgrade = stage
        .world
        .command(&["upgrade", "--standstill-limit", "500"]);
    let upgrade = Completed::of(&mut upgrade);
    eventually("one broker is left", || {
        let _ = stage.world.first.child.try_wait();
        stage.world.brokers().len() == 1 && stage.world.run(&["status"]).code == Some(0)
    });
    assert_eq!(stage.world.pid() == first, goes_on, "{faults}: {upgrade:?}");
    transfer(&mut from_guest, &mut stream);
    assert_eq!(stage.in_arenas(), in_arenas, "{faults}");
    let mut more = Echoed::new(stage.connect());
    more.exchange(9000).unwrap();
    let again = acquaint(connect);
    if goes_on {
        // The old arena is granted again, in which this connection has the next number.
        let number = |stream: &HvStream| stream.connection_id() >> 20;
        assert_eq!(number(&again), number(&stream.stream), "{faults}");
    }
    assert_eq!(stage.lost(), [""; 0], "{faults}");
}

#[test]
fn an_upgrade_that_fails_or_is_killed_at_any_step_leaves_arenas_as_they_were() {
    for faults in [
        "fail:Frozen",
        "fail:DocumentSent",
        "die:Received",
        "die:Restored",
        "stop:Restored",
    ] {
        check_fault(faults, true);
    }
    check_fault("die:EndSent", false);
}
