//! What a thread of the broker that somebody has taken over cannot do.

mod unit;

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::process::Command;

use hvsock_broker::sandbox::{self, Kind};

/// Makes calls on a thread that is confined as one of a kind.
fn taken_over<T: Send + 'static>(kind: Kind, calls: impl FnOnce() -> T + Send + 'static) -> T {
    sandbox::enable_for_this_program().unwrap();
    let thread = std::thread::spawn(move || {
        sandbox::enter(kind);
        calls()
    });
    thread.join().unwrap()
}

fn is_denied<T>(done: io::Result<T>) -> bool {
    done.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

const KINDS: [Kind; 14] = [
    Kind::Core,
    Kind::Data,
    Kind::VmData,
    Kind::Vmm,
    Kind::Hybrid,
    Kind::KernelVsock,
    Kind::Uplink,
    Kind::Observer,
    Kind::Audit,
    Kind::Control,
    Kind::Retry,
    Kind::Watch,
    Kind::Handover,
    Kind::Services,
];

#[test]
fn a_thread_that_is_taken_over_reaches_no_network_and_starts_no_program() {
    for kind in KINDS {
        let denied = taken_over(kind, || {
            let socket = is_denied(UdpSocket::bind(("127.0.0.1", 0)));
            let program = is_denied(Command::new("/bin/true").spawn());
            let namespace = hvsock_sys::netns::NetworkNamespace::open("/proc/self/ns/net");
            let entered = namespace.is_err() || namespace.is_ok_and(|to| to.enter().is_err());
            (socket, program, entered)
        });
        assert_eq!(denied, (true, true, true), "{kind:?}");
    }
}

#[test]
fn a_thread_without_need_of_files_opens_none_and_keeps_those_that_are_open() {
    for kind in [Kind::Data, Kind::VmData, Kind::Audit] {
        let open = tempfile::tempfile().unwrap();
        let denied = taken_over(kind, move || {
            let denied = ["/etc/shadow", "/proc/self/mem", "/dev/null"].map(File::open);
            let usable = io::Write::write_all(&mut &open, b"text").is_ok();
            (denied.map(is_denied), usable)
        });
        assert_eq!(denied, ([true; 3], true), "{kind:?}");
    }
}

#[test]
fn what_a_confined_thread_starts_outside_is_not_confined() {
    let status = || sandbox::outside(|| Command::new("/bin/true").status()).unwrap();
    assert!(taken_over(Kind::Control, status).success());
    // A thread that a confined one starts is under the same list.
    let indirectly = move || std::thread::spawn(status).join().unwrap();
    assert!(taken_over(Kind::Control, indirectly).success());
}
