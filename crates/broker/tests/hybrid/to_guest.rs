//! Connects of the host to the guest.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use hvsock::{HvAddr, HvStream, Refusal, ServiceId};
use hvsock_broker::model::PartitionState;
use hvsock_testkit::wait::TIMEOUT;
use hvsock_testkit::world::{partition_ref, refused};

use crate::links::hybrid_vmm::Kind;
use crate::vm::{PORT, Vm};

const GUID: &str = "e0e16197-dd56-4a10-9195-5ee7a155a838";

#[test]
fn a_process_connects_and_what_follows_the_vmms_answer_is_data() {
    for (style, kind) in [
        ("firecracker", Kind::Firecracker),
        ("cloud-hypervisor", Kind::CloudHypervisor),
        ("openvmm", Kind::OpenVmm),
    ] {
        let vm = Vm::new(style);
        let vmm = vm.start(kind);
        let accepted = vmm.guest().listen(PORT);
        let mut outside = vm.world.connect_to("web", PORT).expect("connected");
        let mut inside = accepted.recv_timeout(TIMEOUT).expect("accepted");
        assert_eq!(
            vmm.guest().lines(),
            [format!("CONNECT {PORT}\n")],
            "{style}"
        );
        assert_eq!(vm.world.partition("web").state, PartitionState::Running);
        inside.write_all(b"OK 1\nfirst").expect("written");
        let mut buffer = [0; 10];
        outside.read_exact(&mut buffer).expect("the bytes");
        assert_eq!(&buffer, b"OK 1\nfirst");
        outside.write_all(b"back").expect("written");
        inside.read_exact(&mut buffer[..4]).expect("the bytes");
        assert_eq!(&buffer[..4], b"back");
    }
}

#[test]
fn data_in_the_same_packet_as_the_answer_is_kept() {
    let vm = Vm::new("firecracker");
    let listener = UnixListener::bind(vm.path()).expect("a socket");
    vm.is_up();
    let connecting = {
        let host = vm.world.host();
        std::thread::spawn(move || host.connect_to(web(ServiceId::from_port(PORT))))
    };
    let mut stream = loop {
        let (mut stream, _) = listener.accept().expect("a connect");
        let mut line = [0; 64];
        let _ = stream.read(&mut line).expect("a line");
        // The first is only to find out that somebody listens.
        if line.starts_with(b"CONNECT") {
            break stream;
        }
    };
    for piece in [&b"O"[..], b"K 10", b"24\nSSH-2.0\n"] {
        stream.write_all(piece).expect("written");
    }
    let mut outside = connecting.join().expect("no panic").expect("connected");
    let mut buffer = [0; 8];
    outside.read_exact(&mut buffer).expect("the bytes");
    assert_eq!(&buffer, b"SSH-2.0\n");
}

fn web(service: ServiceId) -> HvAddr {
    HvAddr::new(partition_ref("web"), service)
}

#[test]
fn openvmm_is_asked_for_the_guid_of_a_service_without_a_port_and_then_for_its_alias() {
    let id: ServiceId = GUID.parse().expect("a GUID");
    let vm = Vm::new("openvmm");
    let service = serde_json::json!({"name": "Echo", "id": GUID});
    let service = serde_json::from_value(service).expect("a service");
    let handle = vm.world.handle();
    handle
        .register(service, "tester".into())
        .expect("registered");
    let vmm = vm.start(Kind::OpenVmm);
    let (alias, host) = (id.vsock_alias().expect("an alias"), vm.world.host());
    let by_alias = vmm.guest().listen(alias);
    let _first = host.connect_to(web(id)).expect("connected");
    by_alias.recv_timeout(TIMEOUT).expect("accepted");
    let by_id = vmm.guest().listen(GUID);
    let _second = host.connect_to(web(id)).expect("connected");
    by_id.recv_timeout(TIMEOUT).expect("accepted");
    let (of_id, of_alias) = (format!("CONNECT {GUID}\n"), format!("CONNECT {alias}\n"));
    assert_eq!(vmm.guest().lines(), [of_id.clone(), of_alias, of_id]);
}

#[test]
fn a_connect_that_the_vmm_closes_is_no_listener_only_once_the_guest_has_spoken() {
    let vm = Vm::new("firecracker");
    let vmm = vm.start(Kind::Firecracker);
    let Refusal::Reset { cause } = refused(vm.world.connect_to("web", PORT)) else {
        panic!("not a reset");
    };
    assert!(cause.contains("driver has not started"), "{cause}");
    assert_eq!(vm.world.partition("web").state, PartitionState::Unknown);
    let accepted = vmm.guest().listen(PORT);
    let stream = vm.world.connect_to("web", PORT).expect("connected");
    drop((stream, accepted));
    vm.world.is("web", PartitionState::Running);
    let refusal = refused(vm.world.connect_to("web", PORT + 1));
    assert_eq!(refusal, Refusal::Unregistered);
    vm.world.register(PORT + 1);
    let refusal = refused(vm.world.connect_to("web", PORT + 1));
    assert_eq!(refusal, Refusal::NoListener);
}

#[test]
fn a_connect_without_an_answer_ends_at_the_callers_time_limit() {
    let vm = Vm::new("firecracker");
    // Accepts nothing, as a VMM that is stopped.
    let _listener = UnixListener::bind(vm.path()).expect("a socket");
    vm.is_up();
    let started = Instant::now();
    let options = vm.world.host().options();
    let options = options.timeout(Duration::from_millis(300));
    let connected: std::io::Result<HvStream> = options.connect(web(ServiceId::from_port(PORT)));
    assert_eq!(
        connected.expect_err("no answer").kind(),
        ErrorKind::TimedOut
    );
    assert!(started.elapsed() < Duration::from_secs(5));
    vm.world.has_connections(0);
}

#[test]
fn half_close_reaches_the_guest_only_where_the_vmm_has_it() {
    for (style, kind) in [
        ("firecracker", Kind::Firecracker),
        ("cloud-hypervisor", Kind::CloudHypervisor),
    ] {
        let vm = Vm::new(style);
        let vmm = vm.start(kind);
        let accepted = vmm.guest().listen(PORT);
        let outside = vm.world.connect_to("web", PORT).expect("connected");
        let mut inside = accepted.recv_timeout(TIMEOUT).expect("accepted");
        (&outside).write_all(b"all").expect("written");
        outside.shutdown(Shutdown::Write).expect("a half-close");
        inside.read_exact(&mut [0; 3]).expect("the bytes");
        let lacks = vm.world.partition("web").lacks;
        if kind == Kind::CloudHypervisor {
            assert_eq!(inside.read(&mut [0]).expect("an end"), 0);
            assert!(!lacks.contains(&"half-close".to_owned()), "{lacks:?}");
        } else {
            inside
                .set_read_timeout(Some(Duration::from_millis(100)))
                .expect("a bound");
            let error = inside.read(&mut [0]).expect_err("no end");
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            assert!(lacks.contains(&"half-close".to_owned()), "{lacks:?}");
        }
        // The other direction goes on.
        inside.write_all(b"answer").expect("written");
        (&outside).read_exact(&mut [0; 6]).expect("the bytes");
    }
}

#[test]
fn libkrun_has_a_socket_for_each_port_of_the_guest_and_takes_no_line() {
    let vm = Vm::new("libkrun");
    assert_eq!(vm.world.partition("web").state, PartitionState::Unknown);
    assert_eq!(
        refused(vm.world.connect_to("web", PORT)),
        Refusal::NoListener
    );
    let listener = UnixListener::bind(vm.socket(PORT)).expect("a socket");
    let mut outside = vm.world.connect_to("web", PORT).expect("connected");
    outside.write_all(b"raw").expect("written");
    let (mut inside, _) = listener.accept().expect("a connect");
    let mut buffer = [0; 3];
    inside.read_exact(&mut buffer).expect("the bytes");
    assert_eq!(&buffer, b"raw");
}

#[test]
fn libkruns_port_at_which_the_host_listens_is_not_the_guests() {
    let vm = Vm::new("libkrun");
    let _listener = vm.world.listen_on(PORT);
    vm.has_socket(PORT);
    // Not connected to the broker itself.
    assert_eq!(
        refused(vm.world.connect_to("web", PORT)),
        Refusal::NoListener
    );
}
