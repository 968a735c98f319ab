//! Runs every example on Windows over the AF_HYPERV shim. The programs are the same as on Linux.

#![cfg(windows)]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hvsock::{HvStream, ServiceId, VmId};
use hvsock_registry::Registration;
use hvsock_registry::key_store::KeyStore;
use hvsock_testkit::process::{self, CapturedOutput, Running};
use hvsock_testkit::require;

/// Timeout of every wait.
const TIMEOUT: Duration = Duration::from_secs(60);
const NAME: &str = "HV Socket Demo";

/// Variable of the shim: the virtual machine of a process.
const PARTITION: &str = "HV_SHIM_PARTITION";

/// Registers the service of all examples in the registry of Windows while a test runs.
struct Host {
    id: ServiceId,
    folder: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Host {
    /// `None` skips the test: there is no shim.
    fn new() -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let folder = require::shim()?;
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let id = ServiceId::random();
        let registration = Registration::new(id, NAME.parse().unwrap());
        let mut store = KeyStore::open().expect("the registry");
        store.put(&registration).expect("a registration");
        Some(Self {
            id,
            folder,
            _alone: alone,
        })
    }

    fn command(&self, program: &str) -> Command {
        Command::new(self.folder.join(program).with_extension("exe"))
    }

    /// Starts a service and waits until it listens.
    fn serve(&self, program: &str, arguments: &[&str]) -> (Running, CapturedOutput) {
        let mut command = self.command(program);
        let mut service =
            Running::start(command.args(arguments).stdout(Stdio::piped())).expect("started");
        let printed = CapturedOutput::from(service.take_stdout().expect("a pipe"));
        printed.wait_for("listening", TIMEOUT).expect("it listens");
        (service, printed)
    }

    fn connect(&self) -> HvStream {
        let stream = HvStream::connect_timeout(("loopback", NAME), TIMEOUT).expect("connected");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        stream
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Ok(mut store) = KeyStore::open() {
            let _ = store.remove(self.id);
        }
    }
}

#[test]
fn echo_client_receives_its_input_from_echo_server() {
    let Some(host) = Host::new() else { return };
    let (_server, printed) = host.serve("echo_server", &[NAME]);
    let data: Vec<u8> = (0..250_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut client = host.command("echo_client");
    let output = process::output(client.args(["loopback", NAME]), &data, TIMEOUT).expect("it ends");
    assert!(output.status.success());
    assert!(
        output.stdout == data,
        "{} bytes came back",
        output.stdout.len()
    );
    printed
        .wait_for("1000000 bytes echoed", TIMEOUT)
        .expect("its count");
    assert!(printed.text().contains("connection from loopback"));
}

#[test]
fn echo_client_explains_a_refusal() {
    let Some(host) = Host::new() else { return };
    let mut client = host.command("echo_client");
    let output = process::output(client.args(["loopback", NAME]), b"", TIMEOUT).expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(words.contains("no listener accepts"), "{words}");
}

#[test]
fn tokio_and_axum_serve() {
    let Some(host) = Host::new() else { return };
    let (service, _printed) = host.serve("tokio_service", &[NAME]);
    let mut stream = host.connect();
    stream.write_all(b"one\ntwo\n").expect("sent");
    stream.shutdown(Shutdown::Write).expect("ended");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("a clean end");
    let lines: Vec<_> = reply.lines().collect();
    assert!(
        lines.len() == 2 && lines[0].ends_with(": one") && lines[1].ends_with(": two"),
        "{reply}"
    );
    drop(service);

    let (_service, _printed) = host.serve("axum_service", &[NAME]);
    let mut stream = host.connect();
    let request = b"GET / HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n";
    stream.write_all(request).expect("sent");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("a reply");
    assert!(reply.starts_with("HTTP/1.1 200 OK"), "{reply}");
}

#[test]
fn both_guest_programs_send_heartbeats() {
    let Some(host) = Host::new() else { return };
    let guest = VmId::random();
    let (_host, printed) = host.serve("heartbeat_host", &[]);
    let mut beats = host.command("heartbeat_guest");
    beats.arg("2").env(PARTITION, guest.to_string());
    let output = process::output(&mut beats, b"", TIMEOUT).expect("it ends");
    assert!(output.status.success(), "{output:?}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        stdout.lines().collect::<Vec<_>>(),
        ["host: reply 1", "host: reply 2", "host: goodbye"]
    );
    let ended = format!("{guest}: closed after 2 beats");
    printed
        .wait_for(&ended, TIMEOUT)
        .expect("the host reports the end");

    let mut calls = host.command("heartbeat_calls");
    calls
        .arg(host.id.to_string())
        .env(PARTITION, guest.to_string());
    let output = process::output(&mut calls, b"", TIMEOUT).expect("it ends");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "reply 1\ngoodbye\n"
    );
}

#[test]
fn the_documents_programs_in_c_talk() {
    let Some(host) = Host::new() else { return };
    let (mut server, _printed) = host.serve("c_server", &["2"]);
    for text in ["hello", "from a program of Windows"] {
        let mut client = host.command("c_client");
        let output = process::output(client.args([text, "loopback"]), b"", TIMEOUT);
        let output = output.expect("it ends");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), text);
    }
    assert!(server.wait(TIMEOUT).expect("it ends").success());
}
