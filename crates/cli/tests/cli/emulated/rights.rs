//! Whose rights the broker judges a program by.

use std::process::Stdio;

use hvsock_testkit::require;
use serde_json::{Value, json};

use super::world::{Emulated, Way};
use crate::util::{Running, eventually};

/// Listens until it is killed.
const LISTEN: &str = "import socket
sock = socket.socket(socket.AF_VSOCK)
sock.bind((0xffffffff, 6100))
sock.listen(6)
print('ready', flush=True)
sock.accept()";

/// User and backlog of the listener for the port.
fn listener(emulated: &Emulated) -> Option<(Value, Value)> {
    let status = emulated.world.json(["status", "--json"]);
    let listeners = status["listeners"].as_array()?;
    let of_port = |listener: &&Value| {
        listener["service"]
            .as_str()
            .is_some_and(|id| id.starts_with("000017d4-"))
    };
    let listener = listeners.iter().find(of_port)?;
    Some((listener["end"]["uid"].clone(), listener["backlog"].clone()))
}

#[test]
fn a_listener_that_is_opened_again_has_the_rights_and_the_backlog_of_its_program() {
    let Some(()) = require::root() else { return };
    let Some(mut emulated) = Emulated::new() else {
        return;
    };
    let mut command = emulated.run([Way::Seccomp.flag(), "--", "setpriv"]);
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.args(["/usr/bin/python3", "-c", LISTEN]);
    let mut running = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
    assert_eq!(running.line(), "ready");
    let first = listener(&emulated).expect("it listens");
    assert_eq!(first, (json!(65534), json!(7)));
    emulated.world.broker().kill();
    emulated.world.start_broker();
    eventually("it listens again", || listener(&emulated).is_some());
    assert_eq!(listener(&emulated), Some(first));
}
