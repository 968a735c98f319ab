//! A host and its virtual machines, each process in a partition of its own, as the AF_HYPERV shim
//! simulates them; and the refusals for Windows' error numbers.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hvsock::{HvListener, HvStream, Refusal, ServiceId, VmId, refusal_of};
use hvsock_registry::Registration;
use hvsock_registry::key_store::KeyStore;

use crate::is_over_shim;

const LONG: Duration = Duration::from_secs(30);
/// The role of a child process of these tests.
const ROLE: &str = "HVSOCK_TEST_ROLE";
const SERVICE: &str = "HVSOCK_TEST_SERVICE";
const TARGET: &str = "HVSOCK_TEST_TARGET";
/// Variables of the shim: the virtual machine of a process, and the result of its connects.
const PARTITION: &str = "HV_SHIM_PARTITION";
const ERROR: &str = "HV_SHIM_ERROR";
const DELAY: &str = "HV_SHIM_DELAY";
const VMS: &str = "HV_SHIM_VMS";

/// A registration in the registry of the machine that ends with the test.
struct Registered(ServiceId);

impl Registered {
    fn new() -> Self {
        let id = ServiceId::random();
        let name = format!("hvsock test {id}").parse().unwrap();
        let mut store = KeyStore::open().expect("the registry");
        store
            .put(&Registration::new(id, name))
            .expect("a registration");
        Self(id)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Ok(mut store) = KeyStore::open() {
            let _ = store.remove(self.0);
        }
    }
}

/// A child process in `role`, for a service.
fn child_command(role: &str, service: ServiceId, target: VmId) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "guests::child_process", "--nocapture"])
        .env(ROLE, role)
        .env(SERVICE, service.to_string())
        .env(TARGET, target.to_string())
        .stdout(Stdio::piped());
    command
}

/// The result that the child prints before it exits.
fn result_of(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let result = text.lines().find_map(|line| line.strip_prefix("result: "));
    result
        .unwrap_or_else(|| panic!("it printed no result: {text}"))
        .to_owned()
}

/// The label of the result of a connect.
fn outcome(connected: std::io::Result<HvStream>) -> String {
    match connected {
        Ok(_) => "connected".to_owned(),
        Err(error) => match refusal_of(&error) {
            Some(refusal) => refusal.label().to_owned(),
            None => format!("no refusal: {error}"),
        },
    }
}

#[test]
fn child_process() {
    let Some(role) = std::env::var_os(ROLE) else {
        return;
    };
    let service: ServiceId = std::env::var(SERVICE).unwrap().parse().unwrap();
    let target: VmId = std::env::var(TARGET).unwrap().parse().unwrap();
    let result = match role.to_str().unwrap() {
        "connect" => outcome(HvStream::connect_timeout((target, service), LONG)),
        "connect within 300 ms" => {
            let start = Instant::now();
            let within = Duration::from_millis(300);
            let result = outcome(HvStream::connect_timeout((target, service), within));
            // The answer would come after 60 seconds.
            assert!(start.elapsed() < LONG);
            result
        }
        "talk" => {
            let mut stream = HvStream::connect_timeout((target, service), LONG).unwrap();
            stream.write_all(b"from the guest").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        }
        "listen" => {
            let listener = HvListener::bind((target, service)).unwrap();
            println!("result: listening");
            let (mut stream, peer) = listener.accept_timeout(LONG).unwrap();
            assert_eq!(peer.vm, VmId::PARENT);
            assert_eq!(stream.peer().unwrap().partition(), "parent");
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            stream.write_all(text.to_uppercase().as_bytes()).unwrap();
            return;
        }
        role => panic!("there is no role {role}"),
    };
    println!("\nresult: {result}");
}

#[test]
fn a_guest_reaches_its_host_which_identifies_the_guest() {
    if !is_over_shim() {
        return;
    }
    let service = Registered::new();
    let guest = VmId::random();
    let listener = HvListener::bind((VmId::CHILDREN, service.0)).unwrap();
    let mut command = child_command("talk", service.0, VmId::PARENT);
    let child = command.env(PARTITION, guest.to_string()).spawn().unwrap();
    let (mut stream, peer) = listener.accept_timeout(LONG).unwrap();
    assert_eq!(peer.vm, guest);
    assert_eq!(stream.peer().unwrap().partition(), guest.to_string());
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from the guest");
    stream.write_all(b"from the host").unwrap();
    drop(stream);
    assert_eq!(result_of(child), "from the host");
}

#[test]
fn a_host_reaches_a_service_in_its_guest_by_the_guests_id() {
    if !is_over_shim() {
        return;
    }
    let (service, guest) = (ServiceId::random(), VmId::random());
    let mut command = child_command("listen", service, VmId::PARENT);
    let mut child = command.env(PARTITION, guest.to_string()).spawn().unwrap();
    let deadline = Instant::now() + LONG;
    let mut stream = loop {
        match HvStream::connect((guest, service)) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    stream.write_all(b"loud").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "LOUD");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_guest_cannot_distinguish_an_unregistered_service_from_one_without_a_listener() {
    if !is_over_shim() {
        return;
    }
    let guest = VmId::random();
    let refused = |service| {
        let mut command = child_command("connect", service, VmId::PARENT);
        result_of(command.env(PARTITION, guest.to_string()).spawn().unwrap())
    };
    let service = Registered::new();
    assert_eq!(refused(service.0), "no_listener");
    assert_eq!(refused(ServiceId::random()), "no_listener");
}

#[test]
fn windows_error_numbers_map_to_refusals() {
    if !is_over_shim() {
        return;
    }
    let service = Registered::new();
    let vm = VmId::random();
    for (number, label) in [
        (10013, "denied"),
        (10049, "partition_unknown"),
        (10050, "partition_paused"),
        (10051, "partition_off"),
        (10055, "limit_reached"),
        (10060, "timed_out"),
        (10061, "no_listener"),
    ] {
        let mut command = child_command("connect", service.0, vm);
        let child = command
            .env(VMS, vm.to_string())
            .env(ERROR, number.to_string());
        assert_eq!(result_of(child.spawn().unwrap()), label, "{number}");
    }
}

#[test]
fn off_paused_and_unknown_virtual_machines_are_distinguished() {
    if !is_over_shim() {
        return;
    }
    let service = Registered::new();
    let vm = VmId::random();
    let outcome_with = |vms: String| {
        let mut command = child_command("connect", service.0, vm);
        result_of(command.env(VMS, vms).spawn().unwrap())
    };
    assert_eq!(outcome_with(format!("{vm}:off")), "partition_off");
    assert_eq!(outcome_with(format!("{vm}:paused")), "partition_paused");
    assert_eq!(outcome_with(vm.to_string()), "no_listener");
    assert_eq!(
        outcome_with(VmId::random().to_string()),
        "partition_unknown"
    );
}

#[test]
fn an_unanswered_connect_times_out() {
    if !is_over_shim() {
        return;
    }
    let mut command = child_command("connect within 300 ms", ServiceId::random(), VmId::LOOPBACK);
    let child = command.env(DELAY, "60000").spawn().unwrap();
    assert_eq!(result_of(child), "timed_out");
}

#[test]
fn a_listener_for_an_unknown_vm_is_refused() {
    if !is_over_shim() {
        return;
    }
    let service = Registered::new();
    let error = HvListener::bind((VmId::random(), service.0)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable, "{error}");
    let refusal = refusal_of(&error);
    assert!(
        matches!(
            refusal,
            Some(Refusal::AddressNotAvailable | Refusal::PartitionUnknown)
        ),
        "{refusal:?}"
    );
}
