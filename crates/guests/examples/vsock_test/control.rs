//! A relay that delays the suite's control connection.
//!
//! The suite assumes that an operation of one half on a vsock connection has reached the other half's
//! kernel when the control message about it arrives over TCP. Nothing guarantees that: both wake threads
//! in two machines, and a guest's kernel passes vsock packets to a worker, which may be scheduled after
//! the process that TCP has woken. A short delay gives vsock the lead that the suite assumes.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// Much longer than the latency of a packet, much shorter than every timeout of the suite.
const DELAY: Duration = Duration::from_millis(20);

/// Listens on a port of the host's loopback and relays one connection to `port`, with the delay.
pub fn delayed(port: u16) -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let own = listener.local_addr()?.port();
    thread::Builder::new()
        .name("control".into())
        .spawn(move || relay(&listener, port))?;
    Ok(own)
}

fn relay(listener: &TcpListener, port: u16) -> io::Result<()> {
    let (client, _) = listener.accept()?;
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    for (from, to) in [(&client, &server), (&server, &client)] {
        let (from, to) = (from.try_clone()?, to.try_clone()?);
        thread::Builder::new()
            .name("control".into())
            .spawn(move || copy_with_delay(from, to))?;
    }
    Ok(())
}

fn copy_with_delay(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        thread::sleep(DELAY);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
