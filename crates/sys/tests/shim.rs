//! Hyper-V sockets within this machine (LOOPBACK), on Windows with Hyper-V or over the shim of
//! `crates/testkit/windows/shim`, which `cargo xtask windows` uses for targets of this name.
#![cfg(windows)]

use std::io;
use std::net::Shutdown;
use std::os::windows::io::OwnedSocket;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use hvsock_sys::hyperv::{self, Address, HvOption};
use hvsock_sys::poll::PollFlags;
use hvsock_sys::{errno, stream, take_error};
use hvsock_testkit::require;

/// e0e16197-dd56-4a10-9195-5ee7a155a838, in the byte order of a `SOCKADDR_HV`.
const LOOPBACK: [u8; 16] = [
    0x97, 0x61, 0xe1, 0xe0, 0x56, 0xdd, 0x10, 0x4a, 0x91, 0x95, 0x5e, 0xe7, 0xa1, 0x55, 0xa8, 0x38,
];
const WILDCARD: [u8; 16] = [0; 16];

fn address(vm: [u8; 16], service: u8) -> Address {
    let mut address = [0; 36];
    address[0] = 34;
    address[4..20].copy_from_slice(&vm);
    // Unique to this test process.
    address[20..24].copy_from_slice(&std::process::id().to_le_bytes());
    address[24..36].fill(0x5a);
    address[35] = service;
    address
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// A socket; `None` on a machine without Hyper-V.
fn socket() -> Option<OwnedSocket> {
    require::found(hyperv::socket())
}

fn accept(listener: &OwnedSocket) -> io::Result<(OwnedSocket, Address)> {
    stream::until(listener, PollFlags::IN, Some(soon()), || {
        hyperv::accept(listener)?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    })
}

/// The connecting and the accepting end of a connection.
fn pair(service: u8) -> Option<(OwnedSocket, OwnedSocket)> {
    let (listener, a) = (socket()?, socket()?);
    let address = address(LOOPBACK, service);
    hyperv::bind(&listener, &address).unwrap();
    hyperv::listen(&listener, 4).unwrap();
    hyperv::connect(&a, &address).unwrap();
    let (b, _) = accept(&listener).unwrap();
    assert!(hyperv::wait_connected(&a, soon()).unwrap());
    Some((a, b))
}

fn recv(socket: &OwnedSocket, buffer: &mut [u8]) -> io::Result<usize> {
    stream::until(socket, PollFlags::IN, Some(soon()), || {
        stream::recv(socket, buffer)
    })
}

#[test]
fn a_connection_is_made_and_both_ends_have_the_peers_address() {
    let (Some(listener), Some(a)) = (socket(), socket()) else {
        return;
    };
    let service = address(WILDCARD, 1);
    hyperv::bind(&listener, &service).unwrap();
    hyperv::listen(&listener, 4).unwrap();
    assert_eq!(hyperv::local_address(&listener).unwrap(), service);
    assert!(hyperv::accept(&listener).unwrap().is_none());
    let to = address(LOOPBACK, 1);
    hyperv::connect(&a, &to).unwrap();
    assert!(hyperv::wait_connected(&a, soon()).unwrap());
    assert!(hyperv::connected(&a).unwrap());
    assert!(take_error(&a).unwrap().is_none());
    assert_eq!(hyperv::peer_address(&a).unwrap(), to);
    let (b, from) = accept(&listener).unwrap();
    assert_eq!(hyperv::peer_address(&b).unwrap(), from);
    assert_eq!(from[..2], 34u16.to_ne_bytes());
    assert!(hyperv::local_address(&a).is_ok());
}

#[test]
fn bytes_flow_both_ways_and_one_way_is_half_closed() {
    let Some((a, b)) = pair(2) else { return };
    assert_eq!(stream::send(&a, b"question").unwrap(), 8);
    stream::shutdown(&a, Shutdown::Write).unwrap();
    let mut buffer = [0; 16];
    assert_eq!(recv(&b, &mut buffer).unwrap(), 8);
    assert_eq!(recv(&b, &mut buffer).unwrap(), 0);
    assert_eq!(stream::send(&b, b"answer").unwrap(), 6);
    assert_eq!(recv(&a, &mut buffer).unwrap(), 6);
    drop(b);
    assert_eq!(recv(&a, &mut buffer).unwrap(), 0);
    let error = stream::send(&a, b"late").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn an_end_without_a_close_is_a_reset() {
    let Some((a, b)) = pair(3) else { return };
    assert_eq!(stream::send(&b, b"last").unwrap(), 4);
    let mut buffer = [0; 16];
    assert_eq!(recv(&a, &mut buffer).unwrap(), 4);
    stream::reset_on_close(&b).unwrap();
    drop(b);
    let error = recv(&a, &mut buffer).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_duplicate_is_the_same_connection() {
    let Some((a, b)) = pair(4) else { return };
    let twin = b.try_clone().unwrap();
    assert_eq!(
        hyperv::peer_address(&twin).unwrap(),
        hyperv::peer_address(&b).unwrap()
    );
    drop(b);
    assert_eq!(stream::send(&twin, b"twin").unwrap(), 4);
    let mut buffer = [0; 16];
    assert_eq!(recv(&a, &mut buffer).unwrap(), 4);
    drop(twin);
    assert_eq!(recv(&a, &mut buffer).unwrap(), 0);
}

#[test]
fn a_connect_without_a_listener_is_refused() {
    let Some(a) = socket() else { return };
    hyperv::connect(&a, &address(LOOPBACK, 5)).unwrap();
    let error = hyperv::wait_connected(&a, soon()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(errno::ECONNREFUSED));
}

#[test]
fn a_connect_needs_an_address_of_one_partition() {
    let Some(a) = socket() else { return };
    let connecting = hyperv::connect(&a, &address(WILDCARD, 6));
    let error = connecting
        .and_then(|()| hyperv::wait_connected(&a, soon()))
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(errno::EADDRNOTAVAIL));
}

#[test]
fn an_address_in_use_cannot_be_bound_again() {
    let (Some(a), Some(b)) = (socket(), socket()) else {
        return;
    };
    hyperv::bind(&a, &address(LOOPBACK, 7)).unwrap();
    hyperv::listen(&a, 1).unwrap();
    let error = hyperv::bind(&b, &address(LOOPBACK, 7))
        .and_then(|()| hyperv::listen(&b, 1))
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    drop(a);
    let c = socket().unwrap();
    hyperv::bind(&c, &address(LOOPBACK, 7)).unwrap();
}

#[test]
fn each_option_reads_back_its_value() {
    let Some(a) = socket() else { return };
    for (option, value) in [
        (HvOption::ConnectTimeout, 300_000),
        (HvOption::ContainerPassthru, 1),
        (HvOption::ConnectedSuspend, 1),
        (HvOption::HighVtl, 1),
    ] {
        hyperv::set_option(&a, option, value).unwrap();
        assert_eq!(hyperv::option(&a, option).unwrap(), value, "{option:?}");
    }
    assert!(hyperv::set_option(&a, HvOption::ConnectTimeout, 300_001).is_err());
}

/// Environment variable of a child process: the test whose other part it runs.
const PART: &str = "HVSOCK_TEST_PART";

/// Runs the test `name` in a child process with these variables.
fn part_of(name: &str, variables: &[(&str, &str)]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]);
    command.env(PART, name).envs(variables.iter().copied());
    command.spawn().unwrap()
}

fn is_part() -> bool {
    std::env::var_os(PART).is_some()
}

/// Runs the other part of a test over the shim, which reads the variables. Skipped without the shim.
fn run_over_shim(name: &str, variables: &[(&str, &str)]) {
    if require::shim().is_some() {
        assert!(part_of(name, variables).wait().unwrap().success());
    }
}

#[test]
fn a_failed_connect_has_the_systems_error_for_the_machine() {
    if is_part() {
        let a = socket().unwrap();
        hyperv::connect(&a, &address(LOOPBACK, 1)).unwrap();
        let error = hyperv::wait_connected(&a, soon()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(errno::ENETUNREACH));
        return;
    }
    let name = "a_failed_connect_has_the_systems_error_for_the_machine";
    run_over_shim(name, &[("HV_SHIM_ERROR", "10051")]);
}

#[test]
fn an_unanswered_connect_can_be_cancelled_and_times_out() {
    if is_part() {
        let limit = Duration::from_millis(300);
        let (a, b) = (socket().unwrap(), socket().unwrap());
        hyperv::set_option(&a, HvOption::ConnectTimeout, 300).unwrap();
        let start = Instant::now();
        hyperv::connect(&a, &address(LOOPBACK, 1)).unwrap();
        hyperv::connect(&b, &address(LOOPBACK, 1)).unwrap();
        assert!(!hyperv::connected(&a).unwrap());
        assert!(!hyperv::wait_connected(&b, start + limit / 3).unwrap());
        assert!(start.elapsed() >= limit / 3);
        drop(b);
        let error = hyperv::wait_connected(&a, soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() >= limit);
        return;
    }
    let name = "an_unanswered_connect_can_be_cancelled_and_times_out";
    run_over_shim(name, &[("HV_SHIM_DELAY", "5000")]);
}

#[test]
fn a_peer_that_is_killed_is_a_reset() {
    let name = "a_peer_that_is_killed_is_a_reset";
    if is_part() {
        let a = socket().unwrap();
        hyperv::connect(&a, &address_of(name)).unwrap();
        assert!(hyperv::wait_connected(&a, soon()).unwrap());
        assert_eq!(stream::send(&a, b"last").unwrap(), 4);
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let Some(listener) = socket() else { return };
    hyperv::bind(&listener, &address_of(name)).unwrap();
    hyperv::listen(&listener, 1).unwrap();
    let mut part = part_of(name, &[]);
    let (b, _) = accept(&listener).unwrap();
    let mut buffer = [0; 8];
    assert_eq!(recv(&b, &mut buffer).unwrap(), 4);
    part.kill().unwrap();
    part.wait().unwrap();
    // Wine closes a killed process's sockets late at times.
    let late = Instant::now() + Duration::from_secs(60);
    let received = stream::until(&b, PollFlags::IN, Some(late), || {
        stream::recv(&b, &mut buffer)
    });
    assert_eq!(received.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

/// An address that both parts of a test derive from its name.
fn address_of(name: &str) -> Address {
    let mut address = address(LOOPBACK, name.len() as u8);
    address[20..24].copy_from_slice(&[1, 2, 3, 4]);
    address
}

/// a42e7cda-d03f-480c-9cc2-a4de20abb878.
const PARENT: [u8; 16] = [
    0xda, 0x7c, 0x2e, 0xa4, 0x3f, 0xd0, 0x0c, 0x48, 0x9c, 0xc2, 0xa4, 0xde, 0x20, 0xab, 0xb8, 0x78,
];
/// The virtual machine of the test below: 11111111-1111-1111-1111-111111111111.
const GUEST: [u8; 16] = [0x11; 16];
const GUEST_TEXT: &str = "11111111-1111-1111-1111-111111111111";
/// 5e5e5e5e-5e5e-5e5e-5e5e-5e5e5e5e5e5e, which the test registers.
const SERVICE: [u8; 16] = [0x5e; 16];
const KEY: &str = concat!(
    r"HKLM\SOFTWARE\Microsoft\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices\",
    "5E5E5E5E-5E5E-5E5E-5E5E-5E5E5E5E5E5E"
);

#[test]
fn a_virtual_machine_reaches_its_host_where_that_allows_it_and_its_host_reaches_it() {
    let name = "a_virtual_machine_reaches_its_host_where_that_allows_it_and_its_host_reaches_it";
    let service_of = |vm: [u8; 16]| {
        let mut address = address(vm, 0);
        address[20..].copy_from_slice(&SERVICE);
        address
    };
    if is_part() {
        return in_the_guest(&service_of(PARENT));
    }
    if require::shim().is_none() {
        return;
    }
    let listener = socket().unwrap();
    hyperv::bind(&listener, &service_of(WILDCARD)).unwrap();
    hyperv::listen(&listener, 4).unwrap();
    let unknown = socket().unwrap();
    let error = hyperv::connect(&unknown, &service_of([0x22; 16])).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(errno::EADDRNOTAVAIL));
    let mut part = part_of(name, &[("HV_SHIM_PARTITION", GUEST_TEXT)]);
    let (from_guest, address) = accept(&listener).unwrap();
    assert_eq!(address[4..20], GUEST);
    // The guest listens now.
    assert_eq!(recv(&from_guest, &mut [0; 8]).unwrap(), 1);
    let to_guest = socket().unwrap();
    hyperv::connect(&to_guest, &service_of(GUEST)).unwrap();
    assert!(hyperv::wait_connected(&to_guest, soon()).unwrap());
    assert_eq!(recv(&to_guest, &mut [0; 8]).unwrap(), 1);
    drop(to_guest);
    assert!(part.wait().unwrap().success());
}

fn in_the_guest(host: &Address) {
    let reg = |arguments: &[&str]| {
        let run = Command::new("reg").args(arguments).arg("/f").output();
        assert!(run.unwrap().status.success(), "reg {arguments:?}");
    };
    let unregistered = socket().unwrap();
    hyperv::connect(&unregistered, host).unwrap();
    let error = hyperv::wait_connected(&unregistered, soon()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    reg(&["add", KEY, "/v", "ElementName", "/d", "hvsock's test"]);
    let (to_host, listener) = (socket().unwrap(), socket().unwrap());
    hyperv::connect(&to_host, host).unwrap();
    let connected = hyperv::wait_connected(&to_host, soon());
    reg(&["delete", KEY]);
    assert!(connected.unwrap());
    hyperv::bind(&listener, host).unwrap();
    hyperv::listen(&listener, 4).unwrap();
    stream::send(&to_host, b"x").unwrap();
    let (from_host, address) = accept(&listener).unwrap();
    assert_eq!(address[4..20], PARENT);
    stream::send(&from_host, b"x").unwrap();
    assert_eq!(recv(&from_host, &mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_receive_after_its_shutdown_is_the_end_and_a_full_shutdown_reaches_the_peer() {
    let Some((a, b)) = pair(9) else { return };
    stream::shutdown(&a, Shutdown::Read).unwrap();
    assert_eq!(recv(&a, &mut [0; 8]).unwrap(), 0);
    assert_eq!(stream::send(&a, b"still").unwrap(), 5);
    let mut buffer = [0; 8];
    assert_eq!(recv(&b, &mut buffer).unwrap(), 5);
    stream::shutdown(&a, Shutdown::Both).unwrap();
    assert_eq!(recv(&b, &mut buffer).unwrap(), 0);
}

#[test]
fn a_wait_for_bytes_ends_at_its_deadline() {
    let Some((a, _b)) = pair(10) else { return };
    let start = Instant::now();
    let deadline = Some(start + Duration::from_millis(50));
    let error = stream::until(&a, PollFlags::IN, deadline, || {
        stream::recv(&a, &mut [0; 8])
    })
    .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert!(start.elapsed() >= Duration::from_millis(50));
}
