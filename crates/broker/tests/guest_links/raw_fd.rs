//! Programs that use a descriptor themselves (RAW_FD), and whose starter closes the control connection at once,
//! connected to a guest.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;

use hvsock_address::{ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::{BrokerMessage, ClientMessage, Connect, Flags, Listen, Transports};
use hvsock_testkit::guest as virtio;
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{World, partition_ref};

use crate::attached::{Client, PORT, all_of, ends};

/// Much more than what a socket and the broker buffer.
const MUCH: usize = 1 << 20;

const RAW_FD: Flags = Flags {
    raw_fd: true,
    dry_run: false,
    explain: false,
};

fn listen(world: &World) -> Client {
    let listener = Client::new(world);
    listener.send(&ClientMessage::Listen(Listen {
        flags: RAW_FD,
        backlog: 8,
        transports: Transports::DESCRIPTOR,
        address: SockAddrHv::new(VmId::WILDCARD, ServiceId::from_port(PORT)),
    }));
    let (message, _) = listener.recv();
    assert!(
        matches!(message, BrokerMessage::Listening(_)),
        "{message:?}"
    );
    listener
}

/// The descriptor for a program, and the control connection.
fn accept(listener: &Client) -> (UnixStream, OwnedFd) {
    let (message, mut descriptors) = listener.recv();
    let BrokerMessage::Incoming(incoming) = message else {
        panic!("{message:?}");
    };
    listener.send(&ClientMessage::Accepted {
        connection: incoming.connection,
    });
    let control = descriptors.pop().expect("control");
    (bounded(descriptors), control)
}

fn connect(world: &World) -> (UnixStream, OwnedFd) {
    let client = Client::new(world);
    let vm = world.handle().partition(&partition_ref("web"));
    client.send(&ClientMessage::Connect(Connect {
        flags: RAW_FD,
        timeout_ms: 0,
        transports: Transports::DESCRIPTOR,
        address: SockAddrHv::new(vm.expect("a VM").id, ServiceId::from_port(PORT)),
    }));
    let (message, descriptors) = client.recv();
    assert!(
        matches!(message, BrokerMessage::Connected(_)),
        "{message:?}"
    );
    (bounded(descriptors), client.0)
}

fn bounded(mut descriptors: Vec<OwnedFd>) -> UnixStream {
    let program = UnixStream::from(descriptors.pop().expect("data"));
    program.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    program.set_write_timeout(Some(TIMEOUT)).expect("a timeout");
    program
}

/// The guest sends until nothing more fits, control is closed, and the program returns what it gets.
fn echoes(world: &World, inside: &virtio::GuestStream, program: UnixStream, control: OwnedFd) {
    let data: Vec<u8> = (0..MUCH).map(|at| (at % 251) as u8).collect();
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut to = inside;
            to.write_all(&data)?;
            inside.shutdown(Shutdown::Write)
        });
        eventually("the guest can write more", || !inside.is_writable());
        drop(control);
        scope.spawn(move || {
            let (mut from, mut to) = (&program, &program);
            let mut bytes = vec![0; 65536];
            loop {
                match from.read(&mut bytes).expect("a read") {
                    0 => return,
                    count => to.write_all(&bytes[..count]).expect("a write"),
                }
            }
        });
        all_of(inside, &data);
        ends(inside);
        sending.join().expect("no panic").expect("all is sent");
    });
    world.has_connections(0);
}

/// The program ends its data first, and receives much afterwards.
#[allow(
    clippy::needless_pass_by_value,
    reason = "both checks have the same type"
)]
fn receives(world: &World, inside: &virtio::GuestStream, program: UnixStream, control: OwnedFd) {
    let data: Vec<u8> = (0..MUCH).map(|at| (at % 241) as u8).collect();
    drop(control);
    (&program).write_all(b"question").expect("a write");
    program.shutdown(Shutdown::Write).expect("a half-close");
    all_of(inside, b"question");
    ends(inside);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut to = inside;
            to.write_all(&data).expect("a write");
            inside.shutdown(Shutdown::Write).expect("a half-close");
        });
        eventually("the guest can write more", || !inside.is_writable());
        let mut got = Vec::new();
        (&program).read_to_end(&mut got).expect("the data");
        assert!(got == data, "{} bytes of {MUCH}", got.len());
    });
    world.has_connections(0);
}

#[test]
fn a_program_with_its_control_closed_early_exchanges_much_with_a_guest() {
    let world = World::with_web(|_| ());
    let guest = world.guest();
    world.register(PORT);
    let outside = listen(&world);
    let inside = guest.listen(PORT).expect("a listener");
    for check in [echoes, receives] {
        let stream = guest.connect(PORT).expect("connected");
        let (program, control) = accept(&outside);
        check(&world, &stream, program, control);

        let (program, control) = connect(&world);
        let stream = inside.accept(TIMEOUT).expect("accepted");
        check(&world, &stream, program, control);
    }
    assert_eq!(guest.protocol_violations(), [""; 0]);
}
