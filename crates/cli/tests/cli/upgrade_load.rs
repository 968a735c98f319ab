//! All that transfers during upgrades: connections of processes in each way, guests' of each kind of link, and
//! connects.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hvsock::{Endpoint, HvStream};
use hvsock_testkit::guest::{Guest, GuestStream, Options};
use hvsock_testkit::require;
use hvsock_virtio::SocketKind;
use serde_json::Value;

use crate::load::process::Process;
use crate::load::{Duplex, End, LIMIT, Messages, Pace, Terms, Totals, Way};
use crate::upgrade::World;
use crate::upgrade_stage::{HOST, Stage};
use crate::util::{TIMEOUT, eventually};

/// The guest's port to which the host connects, and the host's to which guests connect.
const INTO_GUEST: u32 = 5000;
const FROM_GUEST: u32 = 6000;

/// What transfers.
#[derive(Default)]
pub struct Load {
    /// The listening and the connecting processes.
    processes: Vec<(Process, Process)>,
    /// Both ends of connections of this process, which has the guests.
    pairs: Vec<(&'static str, End, End)>,
    churns: Vec<Churn>,
    guests: Vec<Guest>,
    /// VMMs with hybrid sockets, which run as long as these are there.
    vmms: Vec<Receiver<UnixStream>>,
    stages: Vec<Stage>,
    next_seed: u64,
    next_service: u32,
}

/// Connects again and again.
struct Churn {
    shared: Arc<ChurnShared>,
    thread: JoinHandle<Result<(), String>>,
}

#[derive(Default)]
struct ChurnShared {
    stopped: AtomicBool,
    count: AtomicU64,
    /// Of a connect and its first answer.
    longest_us: AtomicU64,
}

/// What the load has done, all of it right.
#[derive(Debug, Default)]
pub struct Done {
    pub connections: usize,
    pub bytes: u64,
    pub connects: u64,
    pub longest_connect: Duration,
}

impl Load {
    /// A process with `count` connections to another one, `half` of them half-closed.
    pub fn processes(&mut self, world: &World, way: Way, count: u64, half: u64) {
        self.processes_at(world, way, count, half, &[]);
    }

    /// The same, with these options of the registration.
    pub fn processes_at(
        &mut self,
        world: &World,
        way: Way,
        count: u64,
        half: u64,
        options: &[&str],
    ) {
        let program = require::example("hvsock-cli", "hvsock-load").expect("the example is built");
        self.next_service += 1;
        let name = format!("load {}", self.next_service);
        world.ok(&[&["service", "register", &name], options].concat());
        let endpoint = world.dir().join("endpoint");
        let any = format!("hvsock://any/{name}");
        let listening = Process::listen(&program, &endpoint, &any, way);
        let to = format!("hvsock://loopback/{name}");
        let connecting = Process::connect(&program, &endpoint, &to, way, (count, half));
        self.processes.push((listening, connecting));
    }

    fn terms(&mut self) -> Terms {
        self.next_seed += 1;
        Terms {
            pace: Pace::of(self.next_seed),
            seed: self.next_seed << 40,
            half: false,
        }
    }

    /// A connection with both ends in this process.
    fn pair(
        &mut self,
        name: &'static str,
        connecting: impl Duplex + 'static,
        accepted: impl Duplex + 'static,
    ) {
        let terms = self.terms();
        let id = self.pairs.len() as u64;
        let ends = [
            End::start(id, connecting, terms, true),
            End::start(id, accepted, terms, false),
        ];
        let [connecting, accepted] = ends;
        self.pairs.push((name, connecting, accepted));
    }

    /// Two guests with vhost-user devices, which are siblings: `count` connections of each kind.
    pub fn guests(&mut self, world: &World, count: usize) {
        for (name, cid) in [("web", "42"), ("db", "43")] {
            world.ok(&["vm", "add", name, "--cid", cid, "--group", "family"]);
        }
        for port in [INTO_GUEST, FROM_GUEST] {
            let port = port.to_string();
            world.ok(&[
                "service",
                "register",
                &format!("port {port}"),
                "--port",
                &port,
            ]);
        }
        let [web, db] = [("web", 42), ("db", 43)].map(|(name, cid)| {
            let socket = world.dir().join("vm").join(format!("{name}.sock"));
            Guest::start(&socket, Options::new(cid)).expect("a guest")
        });
        let listener = web.listen(INTO_GUEST).expect("listening");
        let accept = || limited(listener.accept(TIMEOUT).expect("accepted"));
        let hybrid = world.dir().join("vm/web.vsock");
        for _ in 0..count {
            for shared in [true, false] {
                let name = match shared {
                    true => "from the host by a ring",
                    false => "from the host by a socket",
                };
                let stream = HvStream::options().endpoint(world.endpoint());
                let stream = stream
                    .own_memory(true)
                    .shared_memory(shared)
                    .timeout(TIMEOUT);
                let stream = stream.connect(("web", INTO_GUEST)).expect("connected");
                self.pair(name, bounded(stream), accept());
            }
            let stream = dial(&hybrid, INTO_GUEST);
            self.pair("of a hybrid client", stream, accept());
            for shared in [true, false] {
                let name = match shared {
                    true => "from the guest by a ring",
                    false => "from the guest by a socket",
                };
                let options = hvsock::HvListener::options().endpoint(world.endpoint());
                let options = options.own_memory(true).shared_memory(shared);
                let address = format!("hvsock://children/port {FROM_GUEST}");
                let listener = options.listen(address.as_str()).expect("listening");
                let stream = web.connect(FROM_GUEST).expect("connected");
                let (accepted, _) = listener.accept().expect("accepted");
                self.pair(name, limited(stream), bounded(accepted));
            }
            for (kind, name) in [
                (SocketKind::Stream, "of siblings"),
                (SocketKind::Seqpacket, "of siblings with messages"),
            ] {
                let port = INTO_GUEST;
                let listener = db.listen_for(kind, port, 4).expect("listening");
                let stream = web.connect_to(kind, 43, port, TIMEOUT).expect("connected");
                let accepted = listener.accept(TIMEOUT).expect("accepted");
                let (stream, accepted) = (limited(stream), limited(accepted));
                match kind {
                    SocketKind::Stream => self.pair(name, stream, accepted),
                    _ => self.pair(name, Messages(stream), Messages(accepted)),
                }
            }
        }
        drop(listener);
        self.guests.extend([web, db]);
    }

    /// A VM whose VMM has a hybrid socket: `count` connections each way.
    pub fn hybrid_vm(&mut self, world: &World, count: usize) {
        let path = world.dir().join("vmm.sock");
        let vmm = UnixListener::bind(&path).expect("the VMM's socket");
        let text = path.to_str().expect("UTF-8");
        world.ok(&["vm", "add", "hybrid", "--hybrid", text]);
        let [into, from] = [7000, 7001];
        for port in [into, from] {
            let port = port.to_string();
            world.ok(&[
                "service",
                "register",
                &format!("port {port}"),
                "--port",
                &port,
            ]);
        }
        let address = format!("hvsock://children/port {from}");
        let listener = hvsock::HvListener::options().endpoint(world.endpoint());
        let listener = listener
            .own_memory(true)
            .listen(address.as_str())
            .expect("listening");
        let (connected, accepted) = mpsc::channel();
        thread::spawn(move || {
            for stream in vmm.incoming() {
                let sent =
                    serve(stream.expect("accepted"), into).map(|guest| connected.send(guest));
                if sent.is_some_and(|sent| sent.is_err()) {
                    return;
                }
            }
        });
        for _ in 0..count {
            let stream = HvStream::options()
                .endpoint(world.endpoint())
                .own_memory(true);
            let stream = stream
                .timeout(TIMEOUT)
                .connect(("hybrid", into))
                .expect("connected");
            let guest = accepted
                .recv_timeout(TIMEOUT)
                .expect("the VMM's guest accepts");
            self.pair("into a guest with a hybrid socket", bounded(stream), guest);
            let mut own = path.clone().into_os_string();
            own.push(format!("_{from}"));
            let stream = hvsock_testkit::wait::until_ok("the host's socket is there", || {
                UnixStream::connect(&own)
            });
            let (accepted, _) = listener.accept().expect("accepted");
            self.pair(
                "out of a guest with a hybrid socket",
                timed(stream),
                bounded(accepted),
            );
        }
        self.vmms.push(accepted);
    }

    /// A real guest with a broker: `count` connections of it and of a container in it with the host, each way, and as
    /// many of a container of the host. Skips them (`None`) if a program is missing.
    pub fn containers(&mut self, world: &World, count: u64) -> Option<()> {
        let stage = Stage::new(world)?;
        let endpoint = world.dir().join("endpoint");
        let number = count.to_string();
        // The container that connects is another one than that which listens.
        for (target, client, host) in [
            ("machine", "machine", "parent"),
            ("machine/box", "machine/shop", HOST),
            ("edge", "depot", "parent"),
        ] {
            let [into, out] = [(); 2].map(|()| self.service(world, &stage));
            let (any, to) = (
                format!("hvsock://any/{into}"),
                format!("hvsock://{target}/{into}"),
            );
            let listening = stage.start(world, target, &["listen", &any, "ring"]);
            let counts = (count, 0);
            let connecting = Process::connect(&stage.load, &endpoint, &to, Way::Ring, counts);
            self.processes.push((listening, connecting));
            let (any, to) = (
                format!("hvsock://any/{out}"),
                format!("hvsock://{host}/{out}"),
            );
            let listening = Process::listen(&stage.load, &endpoint, &any, Way::Ring);
            let connect = ["connect", &to, "ring", &number, "0"];
            let connecting = stage.start(world, client, &connect);
            self.processes.push((listening, connecting));
        }
        self.stages.push(stage);
        Some(())
    }

    /// A service that the host's and the guest's broker know, whose containers listen for either.
    fn service(&mut self, world: &World, stage: &Stage) -> String {
        self.next_service += 1;
        let name = format!("load-{}", self.next_service);
        let port = (8000 + self.next_service).to_string();
        let register = ["service", "register", &name, "--port", &port];
        world.ok(&register);
        stage.hvsock(&register);
        name
    }

    /// Connects between processes, again and again.
    pub fn connects(&mut self, world: &World) {
        self.next_service += 1;
        let name = format!("churn {}", self.next_service);
        world.register(&name);
        let listener = world.listen(&name);
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let _ = echo(&stream);
            }
        });
        let (endpoint, address) = (world.endpoint(), format!("hvsock://loopback/{name}"));
        self.churn(move || round_trip(&endpoint, &address));
    }

    fn churn(&mut self, mut once: impl FnMut() -> Result<(), String> + Send + 'static) {
        let shared: Arc<ChurnShared> = Arc::default();
        let of_thread = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            while !of_thread.stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                once()?;
                let took = began.elapsed().as_micros() as u64;
                of_thread.longest_us.fetch_max(took, Ordering::Relaxed);
                of_thread.count.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
        self.churns.push(Churn { shared, thread });
    }

    /// Microseconds of the longest standstill of each steady stream since the last call.
    pub fn longest_standstills(&mut self) -> Vec<u64> {
        let mut all = Vec::new();
        for (listening, connecting) in &mut self.processes {
            listening.ask("mark");
            connecting.ask("mark");
            all.extend(listening.longest_standstills());
            all.extend(connecting.longest_standstills());
        }
        for (_, one, other) in &self.pairs {
            all.extend(one.longest_standstill());
            all.extend(other.longest_standstill());
        }
        all
    }

    /// Waits until more has arrived at every end of this process.
    pub fn wait_for_progress(&self) {
        let ends = self
            .pairs
            .iter()
            .flat_map(|(name, one, other)| [(name, one), (name, other)]);
        let before: Vec<_> = ends
            .map(|(name, end)| (name, end, end.received()))
            .collect();
        for (name, end, received) in before {
            eventually(name, || end.received() > received);
        }
    }

    /// Ends all of it, and checks that what was sent has arrived, once.
    pub fn finish(self) -> Done {
        let mut done = Done::default();
        let mut wrong: Vec<String> = Vec::new();
        for Churn { shared, thread } in self.churns {
            shared.stopped.store(true, Ordering::Relaxed);
            if let Err(why) = thread.join().expect("no panic") {
                wrong.push(format!("a connect: {why}"));
            }
            done.connects += shared.count.load(Ordering::Relaxed);
            let longest = Duration::from_micros(shared.longest_us.load(Ordering::Relaxed));
            done.longest_connect = done.longest_connect.max(longest);
        }
        let mut compare = |what: &str, connecting: Totals, accepted: Totals| {
            done.connections += 1;
            done.bytes += connecting.received + accepted.received;
            let id = connecting.id;
            for error in [&connecting.error, &accepted.error].into_iter().flatten() {
                wrong.push(format!("{what} {id}: {error}"));
            }
            let sent = (connecting.sent, accepted.sent);
            let received = (accepted.received, connecting.received);
            if sent != received {
                wrong.push(format!("{what} {id}: sent {sent:?}, received {received:?}"));
            }
        };
        for (mut listening, mut connecting) in self.processes {
            listening.ask("stop");
            connecting.ask("stop");
            let accepted = listening.totals();
            let mut accepted: HashMap<u64, Totals> = accepted
                .into_iter()
                .map(|totals| (totals.id, totals))
                .collect();
            for totals in connecting.totals() {
                let other = accepted.remove(&totals.id).expect("both ends have one id");
                compare("connection", totals, other);
            }
            assert!(accepted.is_empty(), "{accepted:?}");
        }
        for (_, one, other) in &self.pairs {
            one.stop();
            other.stop();
        }
        for (name, connecting, accepted) in self.pairs {
            compare(name, connecting.totals(), accepted.totals());
        }
        for guest in &self.guests {
            wrong.extend(guest.protocol_violations());
            if guest.transport_resets() > 0 {
                wrong.push("a guest was told that the device has lost all connections".into());
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        done
    }
}

/// The bytes of each connection that the broker lists.
pub type Listed = BTreeMap<u64, [u64; 2]>;

/// The connections that the broker lists, without those of connects.
pub fn listed(world: &World) -> Listed {
    let Value::Array(all) = world.json(&["connections", "--json"]) else {
        panic!("connections are a list");
    };
    let kept = all.iter().filter(|one| {
        let service = one["service_name"].as_str().unwrap_or_default();
        !service.starts_with("churn")
    });
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    kept.map(|one| {
        let bytes = [&one["bytes_sent"], &one["bytes_received"]].map(number);
        (number(&one["id"]), bytes)
    })
    .collect()
}

/// Checks that the same connections are listed as before, and that none has moved less.
pub fn compare(before: &Listed, after: &Listed) {
    let ids = |listed: &Listed| listed.keys().copied().collect::<Vec<_>>();
    assert_eq!(ids(before), ids(after));
    for (id, bytes) in before {
        let now = after[id];
        assert!(
            now[0] >= bytes[0] && now[1] >= bytes[1],
            "{id}: {bytes:?} before, {now:?} after"
        );
    }
}

/// What a broker's process has.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub descriptors: usize,
    pub threads: usize,
    /// Bytes of memory that is its own.
    pub memory: u64,
}

impl Usage {
    pub fn of(pid: u64) -> Self {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let count = |name: &str| {
            std::fs::read_dir(folder.join(name))
                .expect("it runs")
                .count()
        };
        let status = std::fs::read_to_string(folder.join("status")).expect("it runs");
        let anonymous = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = anonymous.and_then(|line| line.trim().strip_suffix(" kB"));
        Self {
            descriptors: count("fd"),
            threads: count("task"),
            memory: kib.expect("a figure").parse::<u64>().expect("a number") << 10,
        }
    }
}

fn limited(stream: GuestStream) -> GuestStream {
    stream.set_read_timeout(Some(LIMIT));
    stream.set_write_timeout(Some(LIMIT));
    stream
}

fn bounded(stream: HvStream) -> HvStream {
    stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
    stream.set_write_timeout(Some(LIMIT)).expect("a timeout");
    stream
}

fn timed(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
    stream.set_write_timeout(Some(LIMIT)).expect("a timeout");
    stream
}

/// Connects to a port at a hybrid socket.
fn dial(path: &Path, port: u32) -> UnixStream {
    let mut stream = timed(UnixStream::connect(path).expect("connected"));
    writeln!(stream, "CONNECT {port}").expect("written");
    let line = line_of(&stream);
    assert!(line.starts_with("OK "), "{line}");
    stream
}

/// Serves a client of a VMM's hybrid socket, whose guest listens on this port.
fn serve(mut stream: UnixStream, port: u32) -> Option<UnixStream> {
    if line_of(&stream) != format!("CONNECT {port}\n") {
        // It asks whether the VMM runs.
        return None;
    }
    stream.write_all(b"OK 1073741824\n").expect("written");
    Some(timed(stream))
}

/// A line, and nothing after it.
fn line_of(stream: &UnixStream) -> String {
    let mut line = String::new();
    let mut reader = BufReader::with_capacity(1, stream);
    // Without one it is empty.
    let _ = reader.read_line(&mut line);
    line
}

fn echo(mut stream: &HvStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes)?;
    stream.write_all(&bytes)
}

fn round_trip(endpoint: &Endpoint, address: &str) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let options = HvStream::options()
        .endpoint(endpoint.clone())
        .own_memory(true);
    let stream = options.timeout(LIMIT).connect(address).map_err(text)?;
    stream.set_read_timeout(Some(LIMIT)).map_err(text)?;
    let mut own = &stream;
    own.write_all(b"hello").map_err(text)?;
    let mut bytes = [0; 5];
    own.read_exact(&mut bytes).map_err(text)?;
    match &bytes == b"hello" {
        true => Ok(()),
        false => Err(format!("{bytes:?} came back")),
    }
}
