//! A link that another process takes over: here both are in one process, and the predecessor leaves as a process
//! that ends does, without a word.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use hvsock_address::ServiceId;
use hvsock_testkit::wait;
use serde_json::{Value, json};

use super::*;
use crate::data_path::ReportSender;
use crate::guest_link::{LinkEvent, Service, Source};
use crate::handover::testing::exported;

const WAIT: Duration = Duration::from_secs(30);

/// A folder with a VMM's socket at which the test listens.
struct Vmm {
    dir: tempfile::TempDir,
    listener: UnixListener,
}

impl Vmm {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("vm")).unwrap();
        Self { dir, listener }
    }

    fn hybrid(&self) -> Box<Hybrid> {
        Box::new(Hybrid {
            path: self.dir.path().canonicalize().unwrap().join("vm"),
            style: HybridStyle::Firecracker,
            user: None,
        })
    }

    fn open(&self) -> Running {
        let (sender, events) = events();
        let link = self.hybrid().open(SETTINGS, sender).unwrap();
        Running { link, events }
    }

    /// The state of a link, and it as another process has it.
    fn hand_over(&self, link: &dyn GuestLink) -> (LinkDocument, Running) {
        let (document, mut imports) = exported(|exports| link.hand_over(exports).unwrap());
        let resumed = self.resume(document.clone(), &mut imports).unwrap();
        assert_eq!(imports.untaken(), 0);
        (document, resumed)
    }

    fn resume(
        &self,
        document: LinkDocument,
        imports: &mut Imports,
    ) -> Result<Running, HandoverError> {
        let (sender, events) = events();
        let none = HashMap::new();
        let resuming = Resuming::new(SETTINGS, sender, &none);
        let link = self.hybrid().resume(document, imports, resuming)?;
        Ok(Running { link, events })
    }

    /// The guest connects to a service of the host.
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        UnixStream::connect(self.dir.path().join(format!("vm_{port}")))
    }

    fn inode(&self, port: u32) -> Option<u64> {
        let file = std::fs::metadata(self.dir.path().join(format!("vm_{port}")));
        file.ok().map(|file| file.ino())
    }

    /// Waits until the guest can connect to a service.
    fn wait_for(&self, port: u32) -> UnixStream {
        wait::within(WAIT, || self.connect(port)).unwrap()
    }

    /// The next connect to the guest, with its line.
    fn accept(&self) -> (UnixStream, String) {
        let (mut stream, _) = self.listener.accept().unwrap();
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            if stream.read(&mut byte).unwrap() == 0 {
                break;
            }
            line.push(byte[0]);
        }
        (stream, String::from_utf8(line).unwrap())
    }
}

/// A link and what it reports.
struct Running {
    link: Box<dyn GuestLink>,
    events: Receiver<LinkEvent>,
}

const SETTINGS: LinkSettings = LinkSettings {
    cid: None,
    max_connections: 16,
};

fn events() -> (EventSender, Receiver<LinkEvent>) {
    let (sender, events) = mpsc::channel();
    let sender = ReportSender::new(move |event| {
        let _ = sender.send(event);
    });
    (sender, events)
}

fn offered(port: u32) -> OfferedService {
    OfferedService {
        service: ServiceId::from_port(port),
        port: Some(port),
        listening: true,
    }
}

impl Running {
    /// The next request of the guest, as its socket.
    fn request(&self) -> UnixStream {
        loop {
            match self.events.recv_timeout(WAIT).unwrap() {
                LinkEvent::Request(id, request) => {
                    self.link.taken(id);
                    return request.socket.unwrap().into();
                }
                LinkEvent::State(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn states(&self) -> Vec<PartitionState> {
        let events = self.events.try_iter();
        let states = events.map(|event| match event {
            LinkEvent::State(state) => state,
            other => panic!("{other:?}"),
        });
        states.collect()
    }

    fn freeze(&self) {
        self.link.freeze().unwrap();
        self.link.frozen(Instant::now() + WAIT).unwrap();
    }

    fn connect(&self, connection: u64, port: u32) {
        let connect = GuestConnect {
            connection: ConnectionId::from_u64(connection),
            source: Source::Host,
            container: None,
            service: Service::Port(port),
            kind: SocketKind::Stream,
            timeout: WAIT,
            end: None,
        };
        self.link.connect(connect).unwrap();
    }

    fn connected(&self, connection: u64) -> UnixStream {
        loop {
            match self.events.recv_timeout(WAIT).unwrap() {
                LinkEvent::Connected(id, socket) if id.as_u64() == connection => {
                    return socket.unwrap().into();
                }
                LinkEvent::State(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

fn assert_connected(one: &mut UnixStream, other: &mut UnixStream) {
    one.set_nonblocking(false).unwrap();
    other.set_nonblocking(false).unwrap();
    for bytes in [b"ping", b"pong"] {
        one.write_all(bytes).unwrap();
        let mut read = [0; 4];
        other.read_exact(&mut read).unwrap();
        assert_eq!(&read, bytes);
    }
}

#[test]
fn a_link_that_is_taken_over_keeps_its_sockets_and_serves_who_connected_meanwhile() {
    let vmm = Vmm::new();
    let before = vmm.open();
    before.link.set_services(vec![offered(5000), offered(5001)]);
    let (_probe, line) = vmm.accept();
    assert!(line.starts_with("PROBE"), "{line}");
    let mut guest = vmm.wait_for(5000);
    let mut host = before.request();
    let files = [vmm.inode(5000), vmm.inode(5001)];
    before.freeze();
    // They wait in the queues of the sockets.
    let mut waiting = [vmm.connect(5001).unwrap(), vmm.connect(5000).unwrap()];
    before.states();
    let (_, after) = vmm.hand_over(&*before.link);
    assert!(after.states().is_empty());
    assert_eq!(after.link.state(), PartitionState::Running);
    // As a process that ends.
    std::mem::forget(before);
    after.link.thaw();
    let mut accepted = [after.request(), after.request()];
    let mut payload = [0; 2];
    for (number, stream) in waiting.iter_mut().enumerate() {
        stream.write_all(&[number as u8]).unwrap();
    }
    for stream in &mut accepted {
        stream.set_nonblocking(false).unwrap();
        let mut byte = [9];
        stream.read_exact(&mut byte).unwrap();
        payload[usize::from(byte[0])] += 1;
    }
    assert_eq!(payload, [1, 1]);
    assert_connected(&mut guest, &mut host);
    after.link.set_services(vec![offered(5000), offered(5001)]);
    // The VMM is known: the next that connects to it is a connect to the guest.
    after.connect(7, 6000);
    let (mut stream, line) = vmm.accept();
    assert_eq!(line, "CONNECT 6000\n");
    stream.write_all(b"OK 1\n").unwrap();
    assert_connected(&mut after.connected(7), &mut stream);
    assert_eq!([vmm.inode(5000), vmm.inode(5001)], files);
    assert!(after.states().is_empty(), "the VM's state has not changed");
    drop(after);
    assert_eq!([vmm.inode(5000), vmm.inode(5001)], [None, None]);
}

#[test]
fn a_link_whose_successor_fails_goes_on_with_its_sockets_and_its_connects() {
    let vmm = Vmm::new();
    let before = vmm.open();
    before.link.set_services(vec![offered(5000)]);
    let _probe = vmm.accept();
    drop(vmm.wait_for(5000));
    before.request();
    let file = vmm.inode(5000);
    // One that waits for the guest, and one that is asked for while the link is frozen.
    before.connect(1, 6000);
    let (mut first, _) = vmm.accept();
    before.freeze();
    before.connect(2, 6001);
    before.connect(3, 6002);
    before
        .link
        .close(ConnectionId::from_u64(3), Refusal::TimedOut);
    before.link.frozen(Instant::now() + WAIT).unwrap();
    before.states();
    let mut waiting = vmm.connect(5000).unwrap();
    let (_, after) = vmm.hand_over(&*before.link);
    drop(after);
    assert_eq!(vmm.inode(5000), file);
    vmm.listener.set_nonblocking(true).unwrap();
    assert!(
        vmm.listener.accept().is_err(),
        "it connects while it is frozen"
    );
    vmm.listener.set_nonblocking(false).unwrap();
    before.link.thaw();
    let (mut second, line) = vmm.accept();
    assert_eq!(line, "CONNECT 6001\n");
    assert_connected(&mut before.request(), &mut waiting);
    for (id, stream) in [(1, &mut first), (2, &mut second)] {
        stream.write_all(b"OK 1\n").unwrap();
        assert_connected(&mut before.connected(id), stream);
    }
    assert_eq!(vmm.inode(5000), file);
    vmm.listener.set_nonblocking(true).unwrap();
    assert!(
        vmm.listener.accept().is_err(),
        "it makes a connect that was given up"
    );
}

#[test]
fn a_file_that_was_removed_while_the_link_was_handed_over_is_made_again() {
    let vmm = Vmm::new();
    let before = vmm.open();
    before.link.set_services(vec![offered(5000)]);
    drop(vmm.wait_for(5000));
    before.request();
    before.freeze();
    let (_, after) = vmm.hand_over(&*before.link);
    std::fs::remove_file(vmm.dir.path().join("vm_5000")).unwrap();
    std::mem::forget(before);
    after.link.thaw();
    drop(vmm.wait_for(5000));
    after.request();
}

/// The example, which is committed, for this folder.
fn example(vmm: &Vmm) -> Value {
    let example = include_str!("tests/hybrid-1.json");
    let mut example: Value = serde_json::from_str(example).unwrap();
    example["state"]["path"] = vmm.hybrid().path.to_str().unwrap().into();
    example
}

/// The descriptors of the example: two sockets, a process and a folder.
fn example_imports(vmm: &Vmm) -> Imports {
    let own = rustix::process::getpid();
    let own = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap();
    let folder = std::fs::File::open(vmm.dir.path()).unwrap();
    let listen = |name: &str| UnixListener::bind(vmm.dir.path().join(name)).unwrap();
    let (imported, imports) = exported(|exports| {
        exports.fd(listen("vm_5000")).unwrap();
        exports.fd(listen("vm_5001")).unwrap();
        exports.fd(own).unwrap();
        exports.fd(folder).unwrap()
    });
    assert_eq!(serde_json::to_value(imported).unwrap(), json!(3));
    imports
}

fn clear(path: &Path) {
    for name in ["vm_5000", "vm_5001"] {
        let _ = std::fs::remove_file(path.join(name));
    }
}

#[test]
fn the_committed_example_is_restored_and_handed_over_as_it_is() {
    let vmm = Vmm::new();
    let document: LinkDocument = serde_json::from_value(example(&vmm)).unwrap();
    let mut imports = example_imports(&vmm);
    let resumed = vmm.resume(document.clone(), &mut imports).unwrap();
    assert_eq!(imports.untaken(), 0);
    let (again, _) = exported(|exports| resumed.link.hand_over(exports).unwrap());
    assert_eq!(again, document);
}

#[test]
fn a_damaged_state_is_an_error_and_touches_nothing() {
    let vmm = Vmm::new();
    let damages: [(&str, Value); 17] = [
        ("/kind", json!("kernel")),
        ("/state/version", json!(2)),
        ("/state/style", json!("openvmm")),
        ("/state/path", json!("/elsewhere/vm")),
        ("/state/state", json!("defined")),
        ("/state/state", json!("asleep")),
        ("/state/vmm", json!(9)),
        ("/state/vmm", json!(3)),
        ("/state/folder", json!(2)),
        ("/state/folder", Value::Null),
        ("/state/wanted/0", json!("no-port")),
        ("/state/wanted", json!(vec!["1"; 1025])),
        ("/state/sockets/0/listener", json!(1)),
        ("/state/sockets/0/listener", json!(2)),
        ("/state/sockets/0/service", json!("5001")),
        ("/state/sockets/0/service", json!("-1")),
        ("/state/sockets/0/file", json!({ "device": 1 })),
    ];
    for (at, value) in damages {
        let mut document = example(&vmm);
        *document.pointer_mut(at).unwrap() = value.clone();
        let mut imports = example_imports(&vmm);
        let document: LinkDocument = serde_json::from_value(document).unwrap();
        let resumed = vmm.resume(document, &mut imports);
        assert!(resumed.is_err(), "{at} {value}");
        assert!(vmm.inode(5000).is_some() && vmm.inode(5001).is_some());
        clear(vmm.dir.path());
    }
}
