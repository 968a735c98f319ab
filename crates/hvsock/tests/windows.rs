//! The library on a Windows without Hyper-V sockets, and calls that need none.

#![cfg(windows)]

use std::io::{self, ErrorKind};

use hvsock::{
    AF_HYPERV, Endpoint, Fix, HV_PROTOCOL_RAW, HvListener, HvSocket, HvStream, Lease, Refusal,
    SOCK_STREAM, ServiceId, SockAddrHv, VmId, fix_of, refusal_of,
};

const LOOPBACK: VmId = VmId::LOOPBACK;

/// The refusal in the error of a call that must fail.
fn refusal<T>(result: io::Result<T>) -> Refusal {
    let error = result.err().expect("a refusal");
    refusal_of(&error)
        .unwrap_or_else(|| panic!("no refusal: {error}"))
        .clone()
}

/// Returns true if Hyper-V sockets exist here, and prints that the test is skipped.
fn has_hyper_v_sockets() -> bool {
    let tried = HvListener::bind((LOOPBACK, ServiceId::random()));
    let has = !matches!(&tried, Err(error) if refusal_of(error) == Some(&Refusal::NotSupported));
    if has {
        eprintln!("skipped: this Windows has AF_HYPERV");
    }
    has
}

#[test]
fn without_hyper_v_every_error_names_how_to_enable_it() {
    if has_hyper_v_sockets() {
        return;
    }
    let service = ServiceId::random();
    let address = SockAddrHv::new(LOOPBACK, service);
    let fresh = || HvSocket::new(AF_HYPERV, SOCK_STREAM, HV_PROTOCOL_RAW).unwrap();
    let mut bound = fresh();
    bound.bind(address).unwrap();
    let errors = [
        HvStream::connect(address).map(drop),
        HvListener::bind(address).map(drop),
        fresh().connect(address),
        bound.listen(1),
    ];
    for result in errors {
        let error = result.unwrap_err();
        assert_eq!(refusal_of(&error), Some(&Refusal::NotSupported), "{error}");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let text = error.to_string();
        assert!(text.contains("AF_HYPERV"), "{text}");
        assert!(text.contains("enable Hyper-V"), "{text}");
        assert_eq!(fix_of(&error), Some(Fix::EnableHyperV), "{text}");
    }
    // Also in non-blocking mode, without waiting.
    let mut socket = fresh();
    socket.set_nonblocking(true).unwrap();
    assert_eq!(refusal(socket.connect(address)), Refusal::NotSupported);
}

#[cfg(feature = "tokio")]
#[test]
fn without_hyper_v_a_task_gets_the_same_error() {
    if has_hyper_v_sockets() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let address = (LOOPBACK, ServiceId::random());
    let connected = runtime.block_on(hvsock::tokio::HvStream::connect(address));
    assert_eq!(refusal(connected), Refusal::NotSupported);
    let bound = runtime.block_on(hvsock::tokio::HvListener::bind(address));
    assert_eq!(refusal(bound), Refusal::NotSupported);
}

#[test]
fn naming_an_endpoint_is_an_error_on_windows() {
    let address = (LOOPBACK, ServiceId::random());
    for endpoint in [Endpoint::at("C:\\hvsock\\endpoint"), Endpoint::of_vsock()] {
        let connect = HvStream::options().endpoint(&endpoint).connect(address);
        let listen = HvListener::options().endpoint(&endpoint).listen(address);
        let lease = Lease::register_at(&endpoint, "Unused", ServiceId::random(), "");
        let explained = HvStream::options().endpoint(&endpoint).explain(address);
        for result in [
            connect.map(drop),
            listen.map(drop),
            lease.map(drop),
            explained.map(drop),
            endpoint.vm_id(&"web".parse().unwrap()).map(drop),
            endpoint.service_id(&"Unused".parse().unwrap()).map(drop),
        ] {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.to_string().contains("Windows"), "{error}");
        }
        assert!(!endpoint.uses_vsock());
    }
}

#[test]
fn unknown_names_are_refused_with_the_next_step() {
    let error = HvStream::connect((LOOPBACK, "No such service")).unwrap_err();
    assert_eq!(refusal_of(&error), Some(&Refusal::Unregistered), "{error}");
    let fix = fix_of(&error);
    let expected = [
        Some(Fix::ListServices),
        Some(Fix::UseServiceId {
            service: "No such service".to_owned(),
        }),
    ];
    assert!(expected.contains(&fix), "{error}");
    let error = HvStream::connect(("no-such-vm", 2761)).unwrap_err();
    assert_eq!(
        refusal_of(&error),
        Some(&Refusal::PartitionUnknown),
        "{error}"
    );
    let text = error.to_string();
    assert!(text.contains("no-such-vm"), "{text}");
    let fix = fix_of(&error);
    let expected = [Some(Fix::ListPartitions), Some(Fix::EnableHyperV)];
    assert!(expected.contains(&fix), "{text}");
}

#[test]
fn explanations_need_no_socket() {
    if !has_hyper_v_sockets() {
        let loopback = hvsock::explain_connect((LOOPBACK, ServiceId::random())).unwrap();
        assert_eq!(loopback.refusal(), Some(&Refusal::NotSupported));
        assert_eq!(loopback.fix(), Some(&Fix::EnableHyperV));
    }
    let named = hvsock::explain_connect(("no-such-vm", 2761)).unwrap();
    assert_eq!(named.refusal(), Some(&Refusal::PartitionUnknown));
    let expected = [Some(&Fix::ListPartitions), Some(&Fix::EnableHyperV)];
    assert!(expected.contains(&named.fix()), "{named}");
    let wildcard = hvsock::explain_listen((VmId::WILDCARD, ServiceId::random())).unwrap();
    assert_eq!(
        wildcard.refusal(),
        Some(&Refusal::Unregistered),
        "{wildcard}"
    );
    assert!(!wildcard.steps().is_empty());
    assert!(
        matches!(wildcard.fix(), Some(Fix::RegisterService { .. })),
        "{wildcard}"
    );
    let broadcast = hvsock::explain_connect((VmId::BROADCAST, 1)).unwrap();
    assert_eq!(broadcast.refusal(), Some(&Refusal::AddressNotAvailable));
}

#[test]
fn a_bind_that_could_never_receive_fails_without_a_system_call() {
    let service = ServiceId::random();
    let bind = HvListener::bind((VmId::CHILDREN, service));
    assert_eq!(refusal(bind), Refusal::Unregistered);
}

/// Leases need an administrator, which these tests run as under Wine.
#[test]
fn a_lease_registers_a_service_and_refuses_a_clash_by_name() {
    let id = ServiceId::random();
    let name = format!("hvsock test {id}");
    let lease = match Lease::register(&name, id) {
        Ok(lease) => lease,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            assert!(error.to_string().contains("administrator"), "{error}");
            eprintln!("skipped: it needs an administrator");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    lease.check().unwrap();
    assert_eq!(lease.id(), id);
    let endpoint = Endpoint::from_env();
    assert_eq!(endpoint.service_id(&name.parse().unwrap()).unwrap(), id);
    let explained = hvsock::explain_listen((VmId::CHILDREN, name.as_str())).unwrap();
    assert_ne!(explained.refusal(), Some(&Refusal::Unregistered));

    let clash = Lease::register(&name.to_uppercase(), ServiceId::random()).unwrap_err();
    assert_eq!(clash.kind(), ErrorKind::AddrInUse, "{clash}");
    assert!(clash.to_string().contains(&id.to_string()), "{clash}");

    drop(lease);
    let gone = endpoint.service_id(&name.parse().unwrap()).unwrap_err();
    assert_eq!(refusal_of(&gone), Some(&Refusal::Unregistered));
}
