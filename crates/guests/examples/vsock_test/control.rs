//! The suite's control connection, relayed with a delay over the guests' serial ports.
//!
//! Each half of the suite has a TCP connection to a process of its own guest, so no guest needs a network. The
//! suite assumes that an operation of one half on a vsock connection has reached the other half's kernel when
//! the control message about it arrives. Nothing guarantees that: both wake threads in two machines, and a
//! guest's kernel passes vsock packets to a worker, which may be scheduled after the process that TCP has
//! woken. A short delay gives vsock the lead that the suite assumes.

use std::io::{self, Read, Write};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use hvsock_guests::{Attached, Guest};

/// The TCP port of the first direction's control connection, in either guest. The processes of an earlier
/// direction's relay keep running, so the next direction has the next port.
pub const PORT: u16 = 1234;

/// Much longer than the latency of a packet, much shorter than every timeout of the suite.
const DELAY: Duration = Duration::from_millis(20);

/// The longest wait for a process in a guest.
const LIMIT: Duration = Duration::from_secs(60);

/// What is still on its way after an attempt must not reach the next one.
const FLUSH: &str = "timeout 1 cat >/dev/null";

/// Relays the control connections of a direction, one after another.
pub fn relay(server: &Guest, client: &Guest, port: u16) -> Result<()> {
    // Until the suite's server listens, a connect is refused.
    let connecting = format!(
        "while :; do if nc 127.0.0.1 {port} 2>/dev/null; then {FLUSH}; else sleep 0.1; fi; done"
    );
    let listening = format!("while :; do nc -l -p {port}; {FLUSH}; done");
    let server = server.attach(&connecting)?;
    let client = client.attach(&listening)?;
    let ends = [(server.try_clone()?, client.try_clone()?), (client, server)];
    for (from, to) in ends {
        thread::Builder::new()
            .name("control".into())
            .spawn(move || copy_with_delay(from, to))?;
    }
    Ok(())
}

/// Waits until the relay's process in the client's guest listens.
pub fn wait_until_listening(client: &Guest, port: u16) -> Result<()> {
    wait_for_state(client, port, "0A")
}

/// Waits until the relay's process in the server's guest is connected.
pub fn wait_until_connected(server: &Guest, port: u16) -> Result<()> {
    wait_for_state(server, port, "01")
}

/// Waits for a TCP socket at this port in this state of `/proc/net/tcp` or `tcp6`.
fn wait_for_state(guest: &Guest, port: u16, state: &str) -> Result<()> {
    let wait = format!(
        "until grep -qs ': [0-9A-F]*:{port:04X} [0-9A-F:]* {state} ' /proc/net/tcp*; do sleep 0.1; done"
    );
    let output = guest.run(&wait, LIMIT)?;
    ensure!(output.success(), "{}", output.stderr_text());
    Ok(())
}

fn copy_with_delay(mut from: Attached, mut to: Attached) -> io::Result<()> {
    from.set_read_timeout(None)?;
    let mut buffer = [0; 4096];
    while let count @ 1.. = from.read(&mut buffer)? {
        thread::sleep(DELAY);
        to.write_all(&buffer[..count])?;
    }
    Ok(())
}
