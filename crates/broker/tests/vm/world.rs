//! The test fixture: a broker in this process with machines, and helpers for both ends of
//! connections with their guests.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hvsock::{
    Endpoint, HvAddr, HvListener, HvStream, PartitionName, PartitionRef, ServiceId, VmId,
};
use hvsock_broker::model::PartitionState;
use hvsock_broker::{Broker, BrokerConfig, Handle};
use hvsock_endpoint::Dirs;
use hvsock_testkit::TempFolder;
use hvsock_testkit::guest::{Driver, Guest, GuestStream, Options};

/// The longest wait for anything that must happen.
pub const TIMEOUT: Duration = Duration::from_secs(20);
/// The port of a registered service.
pub const PORT: u32 = 7001;
/// The context id of the machine `web`, which every [`World`] has.
pub const WEB: u64 = 42;

/// A broker, its folder, and a machine `web`.
pub struct World {
    // Dropped before its folder.
    pub broker: Broker,
    pub folder: TempFolder,
}

impl World {
    pub fn new() -> Self {
        Self::with(|_| ())
    }

    /// A broker with a changed configuration.
    pub fn with(change: impl FnOnce(&mut BrokerConfig)) -> Self {
        let folder = TempFolder::new();
        let mut config = config(&folder);
        change(&mut config);
        let broker = Broker::start(config).expect("a broker");
        let world = Self { broker, folder };
        world.register(PORT);
        world.add("web", WEB, &[]);
        world
    }

    /// Stops the broker and starts another one on the same folder.
    pub fn restarted(self) -> Self {
        let Self { broker, folder } = self;
        drop(broker);
        let broker = Broker::start(config(&folder)).expect("a broker");
        Self { broker, folder }
    }

    pub fn handle(&self) -> Handle {
        self.broker.handle()
    }

    /// Registers a port's service.
    pub fn register(&self, port: u32) {
        let (name, id) = (format!("Service {port}"), ServiceId::from_port(port));
        let service = serde_json::json!({"name": name, "id": id.to_string()});
        let service = serde_json::from_value(service).expect("a service");
        let registered = self.handle().register(service, "tester".into());
        registered.expect("registered");
    }

    /// Adds a machine.
    pub fn add(&self, name: &str, cid: u64, groups: &[&str]) {
        let vm = serde_json::json!({"name": name, "cid": cid, "groups": groups});
        let vm = serde_json::from_value(vm).expect("a machine");
        self.handle().add_vm(vm).expect("added");
    }

    /// The path of a machine's vhost-user socket.
    pub fn socket(&self, name: &str) -> PathBuf {
        let dirs = Dirs {
            run: self.folder.path().to_owned(),
            config: self.folder.path().to_owned(),
        };
        dirs.vm_socket(name)
    }

    /// Starts the guest of `web`.
    pub fn guest(&self) -> Guest {
        self.guest_of("web", Options::new(WEB))
    }

    pub fn guest_of(&self, name: &str, options: Options) -> Guest {
        let guest = Guest::start(&self.socket(name), options).expect("a guest");
        self.is(name, PartitionState::Running);
        guest
    }

    /// Starts the machine `web` with a driver that the test controls.
    pub fn driver(&self, options: Options) -> Driver {
        Driver::start(&self.socket("web"), options).expect("a driver")
    }

    /// Waits until the broker reports a machine's state.
    #[track_caller]
    pub fn is(&self, name: &str, state: PartitionState) {
        eventually("the machine's state", || {
            let partition = self.handle().partition(&reference(name));
            partition.is_ok_and(|partition| partition.state == state)
        });
    }

    /// Waits until the broker has this count of connections.
    #[track_caller]
    pub fn settles_at(&self, connections: usize) {
        eventually("the expected count of connections", || {
            let status = self.handle().status().expect("a status");
            status.connections == connections
        });
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::at(self.folder.join("endpoint"))
    }

    /// A listener on the host for connections from guests.
    pub fn listen(&self) -> HvListener {
        self.listen_on(PORT)
    }

    pub fn listen_on(&self, port: u32) -> HvListener {
        let listener = HvListener::options()
            .endpoint(self.endpoint())
            .backlog(128)
            .listen((VmId::CHILDREN, ServiceId::from_port(port)));
        listener.expect("listening")
    }

    /// Connects from the host into a machine.
    pub fn connect_to(&self, name: &str, port: u32) -> io::Result<HvStream> {
        let stream = HvStream::options()
            .endpoint(self.endpoint())
            .timeout(TIMEOUT)
            .connect(HvAddr::new(reference(name), ServiceId::from_port(port)))?;
        Ok(limited(stream))
    }

    /// Connects the guest to the host. Returns both ends.
    pub fn pair(&self, guest: &Guest, listener: &HvListener) -> (GuestStream, HvStream) {
        let inside = bounded(guest.connect(PORT).expect("connected"));
        (inside, accept(listener))
    }
}

fn config(folder: &TempFolder) -> BrokerConfig {
    let mut config = BrokerConfig::new(Dirs {
        run: folder.path().to_owned(),
        config: folder.path().to_owned(),
    });
    config.partition = PartitionName::new("testhost").expect("a name");
    config.control = false;
    config
}

pub fn reference(name: &str) -> PartitionRef {
    PartitionRef::Name(PartitionName::new(name).expect("a name"))
}

/// Accepts a connection within [`TIMEOUT`].
pub fn accept(listener: &HvListener) -> HvStream {
    limited(listener.accept_timeout(TIMEOUT).expect("accepted").0)
}

pub fn limited(stream: HvStream) -> HvStream {
    stream.set_read_timeout(Some(TIMEOUT)).expect("a bound");
    stream.set_write_timeout(Some(TIMEOUT)).expect("a bound");
    stream
}

pub fn bounded(stream: GuestStream) -> GuestStream {
    stream.set_read_timeout(Some(TIMEOUT));
    stream.set_write_timeout(Some(TIMEOUT));
    stream
}

/// Waits until a condition holds.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < TIMEOUT, "timed out waiting for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A pattern with a prime period, so that lost or repeated bytes are detected.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let byte = |at: u64| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
    (0..65_521).map(byte).collect()
});

/// The segments of the repeated pattern for `len` bytes from offset `at`.
fn segments(at: u64, len: usize) -> impl Iterator<Item = &'static [u8]> {
    let first = (at % PATTERN.len() as u64) as usize;
    let mut left = len;
    std::iter::successors(Some(&PATTERN[first..]), |_| Some(&PATTERN[..])).map_while(move |all| {
        let part = &all[..all.len().min(left)];
        left -= part.len();
        (!part.is_empty()).then_some(part)
    })
}

/// Writes `bytes` bytes of the pattern in chunks of `size`.
pub fn write_all(mut to: impl Write, bytes: u64, size: usize) -> io::Result<()> {
    let mut at = 0;
    while at < bytes {
        let len = size.min(usize::try_from(bytes - at).unwrap_or(size));
        let chunk: Vec<&[u8]> = segments(at, len).collect();
        to.write_all(&chunk.concat())?;
        at += len as u64;
    }
    Ok(())
}

/// Reads until end of file and checks the bytes against the pattern. Returns their count.
pub fn read_all(mut from: impl Read, size: usize) -> io::Result<u64> {
    let mut buffer = vec![0; size];
    let mut at = 0;
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(at);
        }
        let mut rest = &buffer[..read];
        for wanted in segments(at, read) {
            let (now, later) = rest.split_at(wanted.len());
            assert!(now == wanted, "wrong bytes after offset {at}");
            rest = later;
        }
        at += read as u64;
    }
}

/// Sends `bytes` bytes each way at once, then half-closes each way.
#[track_caller]
pub fn exchange(inside: &GuestStream, outside: &HvStream, bytes: u64, size: usize) {
    std::thread::scope(|scope| {
        let out = scope.spawn(move || {
            write_all(inside, bytes, size).expect("the guest writes");
            inside.shutdown(Shutdown::Write).expect("it ends");
        });
        let back = scope.spawn(move || {
            write_all(outside, bytes, size).expect("the host writes");
            outside.shutdown(Shutdown::Write).expect("it ends");
        });
        let at_host = scope.spawn(move || read_all(outside, size.max(4096)));
        let at_guest = scope.spawn(move || read_all(inside, size.max(4096)));
        assert_eq!(
            at_host.join().expect("no panic").expect("the host reads"),
            bytes
        );
        assert_eq!(
            at_guest.join().expect("no panic").expect("the guest reads"),
            bytes
        );
        out.join().expect("no panic");
        back.join().expect("no panic");
    });
}

/// Sends a few bytes each way.
#[track_caller]
pub fn ping(inside: &GuestStream, outside: &HvStream) {
    let (mut inside, mut outside) = (inside, outside);
    let mut buffer = [0; 4];
    inside.write_all(b"ping").expect("the guest writes");
    outside.read_exact(&mut buffer).expect("the host reads");
    assert_eq!(&buffer, b"ping");
    outside.write_all(b"pong").expect("the host writes");
    inside.read_exact(&mut buffer).expect("the guest reads");
    assert_eq!(&buffer, b"pong");
}

/// Sets a flag when dropped, also by a panic, so that the threads that it stops always end.
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The resident memory of this process, in bytes.
pub fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok())
        .expect("a size")
        * 1024
}
