//! A program on the host with plain `AF_VSOCK` sockets, as those that know no broker.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::vsock::{self, Address};
use rustix::io::Errno;
use rustix::net::Shutdown;

use crate::tell::{Answer, number};
use crate::{bridge, load};

/// The time limit of a connect that is to end otherwise, also on an emulated processor that waits for its turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// `VMADDR_CID_ANY`.
const ANY: u32 = u32::MAX;

/// Acts on a command. One that listens does not return.
pub fn act(words: &[&str]) -> Answer {
    match *words {
        ["cid"] => vsock::local_cid().map(signed).map_err(reason),
        // Connects, sends a text, and returns what comes back until the end.
        ["connect", cid, port, text] => ask(cid, port, text, Some(CONNECT_TIMEOUT)),
        // The same, with the kernel's own time limit.
        ["connect-2s", cid, port, text] => ask(cid, port, text, None),
        // Connects, prints so, and holds the connection until the peer ends it.
        ["hold", cid, port] => {
            let stream = connect(address(cid, port)?, Some(CONNECT_TIMEOUT)).map_err(reason)?;
            println!("connected");
            let start = Instant::now();
            let end = match load::count(&stream) {
                Ok(_) => "end of file".to_owned(),
                Err(error) => reason(error),
            };
            Ok(format!("{end} after {} ms", start.elapsed().as_millis()))
        }
        // Sends bytes to a service that echoes, and checks each.
        ["echo", cid, port, bytes] => {
            let stream = connect(address(cid, port)?, Some(CONNECT_TIMEOUT)).map_err(reason)?;
            let bytes = number(bytes)?;
            let start = Instant::now();
            let received = thread::scope(|scope| {
                scope.spawn(|| load::write(&stream, bytes).map(|()| half_close(&stream)));
                load::read(&stream)
            });
            match received.map_err(reason)? {
                all if all == bytes => Ok(load::rate(bytes, start)),
                some => Err(format!("{some} bytes came back, not {bytes}")),
            }
        }
        // Sends bytes, half-closes and waits for the end.
        ["send", cid, port, bytes] => {
            let stream = connect(address(cid, port)?, Some(CONNECT_TIMEOUT)).map_err(reason)?;
            let bytes = number(bytes)?;
            let start = Instant::now();
            load::write(&stream, bytes).map_err(reason)?;
            half_close(&stream)?;
            load::count(&stream).map_err(reason)?;
            Ok(load::rate(bytes, start))
        }
        ["bind", cid, port] => {
            let socket = bound(address(cid, port)?).map_err(reason)?;
            announce("bound");
            park(&socket)
        }
        ["listen", cid, port, ref how @ ..] => listen(address(cid, port)?, how),
        // What a process was given as its standard input.
        ["stdin"] => Ok(described(io::stdin().as_fd())),
        _ => Err(format!("unknown command {words:?}")),
    }
}

/// Connects, sends a text, and returns what comes back until the end.
fn ask(cid: &str, port: &str, text: &str, timeout: Option<Duration>) -> Answer {
    timed(|| {
        let stream = connect(address(cid, port)?, timeout).map_err(reason)?;
        // A service that reads nothing may have closed already. What it has sent counts.
        let sent = (&stream).write_all(text.as_bytes()).map_err(reason);
        let sent = sent.and_then(|()| half_close(&stream));
        let mut reply = Vec::new();
        let received = (&stream).read_to_end(&mut reply).map_err(reason);
        if reply.is_empty() {
            sent.and(received)?;
        }
        Ok(String::from_utf8_lossy(&reply).trim_end().to_owned())
    })
}

fn listen(at: Address, how: &[&str]) -> Answer {
    let (backlog, how) = match *how {
        ["backlog", backlog, ref rest @ ..] => (number(backlog)?, rest),
        _ => (128, how),
    };
    let socket = bound(at).map_err(reason)?;
    vsock::listen(&socket, backlog).map_err(reason)?;
    announce("listening");
    if let ["no-accept"] = how {
        park(&socket);
    }
    loop {
        poll::wait(&mut [PollFd::new(&socket, PollFlags::IN)], None).map_err(reason)?;
        let Some((stream, peer)) = vsock::accept(&socket).map_err(reason)? else {
            continue;
        };
        let (cid, port) = parts(&peer);
        announce(&format!("peer {}:{port}", signed(cid)));
        let stream = File::from(stream);
        let how: Vec<String> = how.iter().map(|&word| word.to_owned()).collect();
        thread::spawn(move || match how.first().map(String::as_str) {
            Some("echo") => {
                let _ = bridge::pump(&stream, &stream);
            }
            // Tells the peer's address, as an identity.
            Some("whoami") => {
                let _ = writeln!(&stream, "you are {}:{port}", signed(cid));
            }
            // Closes at once, like a listener that refuses after the fact.
            Some("close") => {}
            _ => {
                let _ = load::count(&stream);
            }
        });
    }
}

/// The socket's family and peer, as the process that has it sees them.
pub fn described(fd: impl AsFd) -> String {
    let family = if vsock::is_vsock(&fd) {
        "AF_VSOCK"
    } else {
        "no AF_VSOCK"
    };
    let show = |address: io::Result<Address>| {
        address.map_or_else(reason, |address| {
            let (cid, port) = parts(&address);
            format!("{}:{port}", signed(cid))
        })
    };
    let (local, peer) = (
        show(vsock::local_address(&fd)),
        show(vsock::peer_address(&fd)),
    );
    format!("{family}, local {local}, peer {peer}")
}

fn bound(at: Address) -> io::Result<OwnedFd> {
    let socket = vsock::socket()?;
    vsock::bind(&socket, &at)?;
    Ok(socket)
}

/// Connects within `timeout`, or the kernel's 2 seconds.
fn connect(to: Address, timeout: Option<Duration>) -> io::Result<File> {
    let socket = vsock::socket()?;
    if let Some(timeout) = timeout {
        vsock::set_connect_timeout(&socket, timeout)?;
    }
    vsock::connect(&socket, &to)?;
    while !vsock::connected(&socket)? {
        poll::wait(&mut [PollFd::new(&socket, PollFlags::OUT)], None)?;
    }
    hvsock_sys::set_nonblocking(&socket, false)?;
    Ok(socket.into())
}

fn half_close(stream: &File) -> Result<(), String> {
    rustix::net::shutdown(stream, Shutdown::Write).map_err(reason)
}

/// Adds the duration to a result, in both cases.
fn timed(action: impl FnOnce() -> Answer) -> Answer {
    let start = Instant::now();
    let answer = action();
    let time = format!("after {} ms", start.elapsed().as_millis());
    match answer {
        Ok(text) => Ok(format!("{text} {time}")),
        Err(text) => Err(format!("{text} {time}")),
    }
}

/// Prints a line at once: the scenario waits for it.
fn announce(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn park(_socket: &OwnedFd) -> ! {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// A `sockaddr_vm`. `any` is every context id or a free port.
fn address(cid: &str, port: &str) -> Result<Address, String> {
    let word = |word: &str| match word {
        "any" => Ok(ANY),
        word => number(word),
    };
    let mut address = [0; 16];
    address[..2].copy_from_slice(&40_u16.to_ne_bytes());
    address[4..8].copy_from_slice(&word(port)?.to_ne_bytes());
    address[8..12].copy_from_slice(&word(cid)?.to_ne_bytes());
    Ok(address)
}

fn parts(address: &Address) -> (u32, u32) {
    let word = |at: usize| {
        let bytes = address[at..at + 4].try_into();
        bytes.map_or(0, u32::from_ne_bytes)
    };
    (word(8), word(4))
}

/// `VMADDR_CID_ANY` is -1 to people.
fn signed(cid: u32) -> String {
    cid.cast_signed().to_string()
}

/// The name of the error number, so that scenarios compare it.
fn reason(error: impl Into<io::Error>) -> String {
    let error = error.into();
    let names = [
        (Errno::NODEV, "ENODEV"),
        (Errno::CONNRESET, "ECONNRESET"),
        (Errno::TIMEDOUT, "ETIMEDOUT"),
        (Errno::HOSTUNREACH, "EHOSTUNREACH"),
        (Errno::ADDRINUSE, "EADDRINUSE"),
        (Errno::ADDRNOTAVAIL, "EADDRNOTAVAIL"),
        (Errno::ACCESS, "EACCES"),
        (Errno::PIPE, "EPIPE"),
        (Errno::NOTCONN, "ENOTCONN"),
        (Errno::CONNREFUSED, "ECONNREFUSED"),
        (Errno::NETUNREACH, "ENETUNREACH"),
        (Errno::INVAL, "EINVAL"),
    ];
    let number = Errno::from_io_error(&error);
    let name = names.iter().find(|(errno, _)| Some(*errno) == number);
    name.map_or_else(|| error.to_string(), |(_, name)| (*name).to_owned())
}
