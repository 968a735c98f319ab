//! Connections of a service with `transport = "direct"`: both processes have the ends of one socket pair.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use hvsock::{ConnectOptions, HvListener, HvStream, ListenOptions, Refusal, Transport, VmId};
use hvsock_broker::model::{Connection, PartitionState, TransportChange, TransportSetting};

use hvsock_ring::OpenError;
use hvsock_testkit::wait::{TIMEOUT, eventually};
use hvsock_testkit::world::{World, accept, address, partition_ref, refusal, service, service_ref};

use crate::arenas::{self, Pair};

const PORT: u32 = 870;

/// A world with a direct service.
fn world() -> World {
    let world = World::new();
    let mut direct = service(PORT);
    direct.transport = Some(TransportSetting::Direct);
    world.handle().register(direct, "tester".into()).unwrap();
    world
}

fn only(world: &World) -> Connection {
    let [connection] = world.handle().connections().unwrap().try_into().unwrap();
    connection
}

/// A connection within the host, with the flag `raw_fd` of the client and of the server.
fn pair(world: &World, raw_fd: [bool; 2]) -> (HvStream, HvStream) {
    let endpoint = world.host().endpoint();
    let connecting = ConnectOptions::new().endpoint(&endpoint).raw_fd(raw_fd[0]);
    let listening = ListenOptions::new().endpoint(&endpoint).raw_fd(raw_fd[1]);
    let listener: HvListener = listening.listen(address(VmId::LOOPBACK, PORT)).unwrap();
    let client = connecting.connect(address(VmId::LOOPBACK, PORT)).unwrap();
    (client, accept(&listener))
}

/// The bare descriptor of a stream, as a program without the library has it.
fn bare(stream: HvStream) -> UnixStream {
    let data = UnixStream::from(stream.into_owned_fds().unwrap().data);
    data.set_read_timeout(Some(TIMEOUT)).unwrap();
    data
}

#[test]
fn the_bytes_of_a_direct_connection_are_not_counted_and_an_operator_closes_it() {
    let world = world();
    let (mut client, mut server) = pair(&world, [false; 2]);
    assert_eq!(client.transport(), Transport::Direct);
    assert_eq!(server.transport(), Transport::Direct);
    client.write_all(b"question").unwrap();
    server.read_exact(&mut [0; 8]).unwrap();
    let seen = only(&world);
    assert_eq!(seen.transport, "direct");
    assert_eq!((seen.bytes_sent, seen.bytes_received), (None, None));
    client.write_all(b"unread").unwrap();
    world.handle().close_connection(seen.id).unwrap();
    let mut rest = Vec::new();
    let error = server.read_to_end(&mut rest).unwrap_err();
    assert_eq!(
        (rest.as_slice(), error.kind()),
        (&b"unread"[..], io::ErrorKind::ConnectionReset)
    );
    assert!(matches!(refusal(&error), Refusal::Reset { .. }), "{error}");
    let error = client.write(b"?").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    world.has_connections(0);
}

#[test]
fn disabling_the_service_closes_the_sockets_of_programs_without_the_library() {
    let world = world();
    let (client, server) = pair(&world, [true; 2]);
    // They keep control, as a program that wants reasons does.
    let (client, server) = (
        client.into_owned_fds().unwrap(),
        server.into_owned_fds().unwrap(),
    );
    let (mut one, mut other) = (UnixStream::from(client.data), UnixStream::from(server.data));
    one.write_all(b"ab").unwrap();
    other.read_exact(&mut [0; 2]).unwrap();
    world
        .handle()
        .set_enabled(&service_ref(PORT), false, None)
        .unwrap();
    for end in [&mut one, &mut other] {
        end.set_read_timeout(Some(TIMEOUT)).unwrap();
        assert_eq!(end.read(&mut [0; 8]).unwrap(), 0);
        assert_eq!(
            end.write(b"x").unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }
}

#[test]
fn a_program_without_the_library_and_one_with_it_end_each_others_data_cleanly() {
    for raw_fd in [[true, false], [false, true]] {
        let world = world();
        let (client, server) = pair(&world, raw_fd);
        let (raw, mut library) = match raw_fd[0] {
            true => (client, server),
            false => (server, client),
        };
        // Control is closed early, as by a program that is executed.
        let mut raw = bare(raw);
        raw.write_all(b"from cat").unwrap();
        raw.shutdown(Shutdown::Write).unwrap();
        let mut got = String::new();
        library.read_to_string(&mut got).unwrap();
        assert_eq!(got, "from cat");
        library.write_all(b"to cat").unwrap();
        library.shutdown(Shutdown::Write).unwrap();
        got.clear();
        raw.read_to_string(&mut got).unwrap();
        assert_eq!(got, "to cat");
        drop((raw, library));
        eventually("the connection ends", || {
            world.handle().connections().unwrap().is_empty()
        });
    }
}

#[test]
fn two_programs_without_the_library_go_on_when_both_have_closed_control() {
    let world = world();
    let (client, server) = pair(&world, [true; 2]);
    let (mut client, mut server) = (bare(client), bare(server));
    eventually("the broker has no part in it", || {
        world.handle().connections().unwrap().is_empty()
    });
    client.write_all(b"on").unwrap();
    server.read_exact(&mut [0; 2]).unwrap();
    drop(client);
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_pause_resets_a_direct_connection_even_if_it_is_to_outlast_the_pause() {
    let world = world();
    let web = world.container("web", None);
    let listener = world.host().listen(VmId::CHILDREN, PORT).unwrap();
    let (mut inside, mut outside) = web.pair(VmId::PARENT, PORT, &listener);
    assert_eq!(inside.transport(), Transport::Direct);
    inside.set_connected_suspend(true).unwrap();
    outside.set_connected_suspend(true).unwrap();
    eventually("the option is set", || {
        let seen = only(&world);
        seen.from.connected_suspend && seen.to.connected_suspend
    });
    let paused = PartitionState::Paused;
    world
        .handle()
        .set_state(&partition_ref("web"), paused)
        .unwrap();
    for stream in [&mut inside, &mut outside] {
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(refusal(&error), Refusal::PartitionPaused, "{error}");
    }
}

#[test]
fn an_override_decides_the_transport_and_a_change_concerns_new_connections() {
    let world = world();
    let (web, db) = (world.container("web", None), world.container("db", None));
    let set = |transport, vm: Option<&str>| {
        let vm = vm.map(partition_ref);
        let change = TransportChange { transport, vm };
        world
            .handle()
            .set_transport(&service_ref(PORT), &change)
            .unwrap()
    };
    let changed = set(Some(TransportSetting::Auto), Some("db"));
    assert_eq!(changed.vm["db"].transport, Some(TransportSetting::Auto));
    let listener = world.host().listen(VmId::CHILDREN, PORT).unwrap();
    let (of_web, _to_web) = web.pair(VmId::PARENT, PORT, &listener);
    let (of_db, _to_db) = db.pair(VmId::PARENT, PORT, &listener);
    assert_eq!(
        (of_web.transport(), of_db.transport()),
        (Transport::Direct, Transport::Ring)
    );
    set(None, None);
    let (again, _to_web) = web.pair(VmId::PARENT, PORT, &listener);
    assert_eq!(
        (again.transport(), of_web.transport()),
        (Transport::Ring, Transport::Direct)
    );
    // Without settings of its own, the override is gone.
    assert!(set(None, Some("db")).vm.is_empty());
}

#[test]
fn an_arena_opens_no_connections_while_its_service_is_direct() {
    let world = World::new();
    world.register(arenas::PORT);
    let (web, host) = (world.container("web", None), world.host());
    let pair = Pair::new(&world, &web, VmId::PARENT, &host, VmId::CHILDREN);
    let (before, accepted, _) = pair.connect();
    let set = |transport, vm: Option<&str>| {
        let vm = vm.map(partition_ref);
        let change = TransportChange { transport, vm };
        let service = service_ref(arenas::PORT);
        world.handle().set_transport(&service, &change).unwrap();
    };
    let open = || pair.client.connect().map(|_| ());
    let (direct, auto) = (TransportSetting::Direct, TransportSetting::Auto);
    // What the process opens after the change was answered asks the broker.
    set(Some(direct), None);
    assert_eq!(open().unwrap_err(), OpenError::Revoked);
    // The one from before goes on.
    assert_eq!(before.try_write(b"on").unwrap(), 2);
    assert_eq!(accepted.try_read(&mut [0; 8]).unwrap(), 2);
    set(Some(auto), Some("web"));
    open().expect("the override is judged");
    set(Some(direct), Some("web"));
    assert_eq!(open().unwrap_err(), OpenError::Revoked);
    set(None, Some("web"));
    assert_eq!(open().unwrap_err(), OpenError::Revoked);
    set(None, None);
    open().expect("it is as before");
}
