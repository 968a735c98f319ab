//! The connection by which the suite's halves tell each other how far they are, made slow.
//!
//! The suite takes it that what one half has done to a vsock connection is known to the other half's
//! kernel when word of it comes over this one. Nothing makes that so: both ways wake threads of
//! two machines, and a guest's kernel hands vsock's packets to a worker, which may be scheduled after
//! the process that TCP has woken. A moment's delay gives vsock the lead that the suite believes in.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// Much longer than a packet takes, much shorter than any limit of the suite.
const DELAY: Duration = Duration::from_millis(20);

/// A port of the host's loopback that leads to `port` there, for one connection.
pub fn slowed(port: u16) -> io::Result<u16> {
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
            .spawn(move || pass_on(from, to))?;
    }
    Ok(())
}

fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        thread::sleep(DELAY);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
