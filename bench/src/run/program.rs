//! The program that is measured: a server that closes or echoes what it accepts, and a client with a clock.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::Context;
use hvsock::{HvListener, HvStream, ServiceId, VmId};
use socket2::{Domain, SockAddr, Socket, Type};

use super::Way;
use crate::worker::{self, Worker};

/// First argument that makes a bench's program run as the server.
pub const SERVER: &str = "role-run-server";
/// First argument that makes a bench's program run as the client.
pub const CLIENT: &str = "role-run-client";

/// `VMADDR_CID_LOCAL` of linux/vm_sockets.h.
const CID_LOCAL: u32 = 1;
/// The backlog of all listeners: that of `std`'s Unix sockets.
const BACKLOG: u32 = 128;
/// The bytes of one write of a transfer.
pub const WRITE: usize = 64 * 1024;
/// The bytes of one message of a round trip.
pub const MESSAGE: usize = 64;
/// Calls that are timed together.
const CALLS: u32 = 50;

/// The modes of a data connection: its first byte. The number of bytes to read or messages to echo follows.
const SINK: u8 = b's';
const ECHO: u8 = b'e';

/// Where a server listens.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// How it listens.
    pub way: Way,
    /// The broker's endpoint.
    pub endpoint: PathBuf,
    /// A folder for Unix sockets.
    pub folder: PathBuf,
    /// The vsock port at which connections are closed. At the next one they carry data.
    pub port: u32,
}

impl Addresses {
    /// Starts the server, or the client.
    pub fn start(&self, role: &str, mut command: Command) -> anyhow::Result<Worker> {
        command
            .arg(role)
            .arg(self.way.word())
            .arg(&self.endpoint)
            .arg(&self.folder)
            .arg(self.port.to_string());
        Worker::of(command)
    }

    fn from_words(words: &[&str]) -> anyhow::Result<Self> {
        let [way, endpoint, folder, port] = words else {
            anyhow::bail!("expected a way, an endpoint, a folder and a port");
        };
        Ok(Self {
            way: Way::parse(way)?,
            endpoint: endpoint.into(),
            folder: folder.into(),
            port: port.parse()?,
        })
    }

    /// The port whose connections carry data.
    fn data_port(&self) -> u32 {
        self.port + 1
    }

    /// The socket's family and address of a port.
    fn socket_address(&self, port: u32) -> io::Result<(Domain, SockAddr)> {
        Ok(match self.way {
            Way::Unix => {
                let path = self.folder.join(port.to_string());
                (Domain::UNIX, SockAddr::unix(path)?)
            }
            _ => (Domain::VSOCK, SockAddr::vsock(CID_LOCAL, port)),
        })
    }

    fn listen(&self, port: u32) -> io::Result<Listener> {
        if let Way::Library | Way::Descriptor = self.way {
            let listener = HvListener::options()
                .endpoint(self.endpoint.clone())
                .shared_memory(self.way == Way::Library)
                .raw_fd(self.is_raw(port))
                .backlog(BACKLOG)
                .listen((VmId::LOOPBACK, ServiceId::from_port(port)))?;
            return Ok(Listener::Hvsock(listener));
        }
        let (domain, address) = self.socket_address(port)?;
        let socket = Socket::new(domain, Type::STREAM, None)?;
        socket.bind(&address)?;
        socket.listen(BACKLOG as i32)?;
        Ok(Listener::Socket(socket))
    }

    fn connect(&self, port: u32) -> io::Result<Stream> {
        if let Way::Library | Way::Descriptor = self.way {
            let stream = HvStream::options()
                .endpoint(self.endpoint.clone())
                .shared_memory(self.way == Way::Library)
                .raw_fd(self.is_raw(port))
                .connect((VmId::LOOPBACK, ServiceId::from_port(port)))?;
            return self.stream(stream, port);
        }
        let (domain, address) = self.socket_address(port)?;
        let socket = Socket::new(domain, Type::STREAM, None)?;
        socket.connect(&address)?;
        Ok(Stream::Socket(socket))
    }

    /// Whether a connection of the library is only a descriptor: data of the way that programs have, too.
    fn is_raw(&self, port: u32) -> bool {
        self.way == Way::Descriptor && port == self.data_port()
    }

    fn stream(&self, stream: HvStream, port: u32) -> io::Result<Stream> {
        if !self.is_raw(port) {
            return Ok(Stream::Hvsock(stream));
        }
        let fds = stream.into_owned_fds()?;
        Ok(Stream::Raw(fds.data.into(), fds.control))
    }

    fn accept(&self, listener: &Listener, port: u32) -> io::Result<Stream> {
        match listener {
            Listener::Hvsock(listener) => self.stream(listener.accept()?.0, port),
            Listener::Socket(socket) => Ok(Stream::Socket(socket.accept()?.0)),
        }
    }
}

enum Listener {
    Hvsock(HvListener),
    Socket(Socket),
}

enum Stream {
    Hvsock(HvStream),
    Socket(Socket),
    /// With the control connection, which is kept as long as the data.
    Raw(UnixStream, #[allow(dead_code, reason = "held")] OwnedFd),
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Hvsock(stream) => stream.read(buffer),
            Self::Socket(socket) => socket.read(buffer),
            Self::Raw(stream, _) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Hvsock(stream) => stream.write(bytes),
            Self::Socket(socket) => socket.write(bytes),
            Self::Raw(stream, _) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Body of the server.
pub fn serve_server(arguments: &[&str]) -> anyhow::Result<()> {
    let addresses = Addresses::from_words(arguments)?;
    let (port, data_port) = (addresses.port, addresses.data_port());
    let closing = addresses.listen(port).context("cannot listen")?;
    let data = addresses.listen(data_port).context("cannot listen")?;
    let its = addresses.clone();
    thread::spawn(move || accept_all(|| its.accept(&closing, port).map(drop)));
    thread::spawn(move || {
        accept_all(|| {
            let stream = addresses.accept(&data, data_port)?;
            // The client may have been killed.
            let _ = serve_data(stream);
            Ok(())
        });
    });
    worker::serve(|words| anyhow::bail!("unknown request {words:?}"))
}

fn accept_all(mut accept: impl FnMut() -> io::Result<()>) {
    loop {
        if let Err(error) = accept() {
            eprintln!("the bench's server cannot accept: {error}");
            return;
        }
    }
}

fn serve_data(mut stream: Stream) -> io::Result<()> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let [mode, count @ ..] = head;
    let count = u64::from_le_bytes(count);
    if mode == ECHO {
        let mut message = [0; MESSAGE];
        for _ in 0..count {
            stream.read_exact(&mut message)?;
            stream.write_all(&message)?;
        }
        return Ok(());
    }
    let (mut left, mut buffer) = (count, vec![0; WRITE]);
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            read => left = left.saturating_sub(read as u64),
        }
    }
    stream.write_all(&[SINK])
}

/// Body of the client.
pub fn serve_client(arguments: &[&str]) -> anyhow::Result<()> {
    let addresses = Addresses::from_words(arguments)?;
    worker::serve(|words| match words {
        ["foreign", times] => {
            let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&any.into())?;
            names(&socket, times.parse()?)
        }
        ["own", times] => {
            let (domain, _) = addresses.socket_address(addresses.port)?;
            names(&Socket::new(domain, Type::STREAM, None)?, times.parse()?)
        }
        ["connect", times] => connects(&addresses, times.parse()?),
        ["send", bytes] => send(&addresses, bytes.parse()?),
        ["echo", times] => echo(&addresses, times.parse()?),
        other => anyhow::bail!("unknown request {other:?}"),
    })
}

/// Nanoseconds of `getsockname`, several times.
fn names(socket: &Socket, times: usize) -> anyhow::Result<String> {
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        let start = Instant::now();
        for _ in 0..CALLS {
            socket.local_addr()?;
        }
        took.push(start.elapsed() / CALLS);
    }
    Ok(nanoseconds(&took))
}

/// Nanoseconds of creating a socket, connecting it, reading the end of file of the peer that has accepted and closed,
/// and closing, several times.
fn connects(addresses: &Addresses, times: usize) -> anyhow::Result<String> {
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        let start = Instant::now();
        let mut stream = addresses
            .connect(addresses.port)
            .context("cannot connect")?;
        let read = stream.read(&mut [0; 1]).context("cannot read")?;
        anyhow::ensure!(read == 0, "the server has sent something");
        drop(stream);
        took.push(start.elapsed());
    }
    Ok(nanoseconds(&took))
}

/// Nanoseconds of sending `bytes` until the server has them.
fn send(addresses: &Addresses, bytes: u64) -> anyhow::Result<String> {
    let mut stream = data_connection(addresses, SINK, bytes)?;
    let buffer = vec![0; WRITE];
    let start = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let count = left.min(WRITE as u64);
        stream.write_all(&buffer[..count as usize])?;
        left -= count;
    }
    stream.read_exact(&mut [0; 1])?;
    Ok(nanoseconds(&[start.elapsed()]))
}

/// Nanoseconds of round trips.
fn echo(addresses: &Addresses, times: usize) -> anyhow::Result<String> {
    let mut stream = data_connection(addresses, ECHO, times as u64)?;
    let mut message = [0; MESSAGE];
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        let start = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        took.push(start.elapsed());
    }
    Ok(nanoseconds(&took))
}

fn data_connection(addresses: &Addresses, mode: u8, count: u64) -> anyhow::Result<Stream> {
    let mut stream = addresses
        .connect(addresses.data_port())
        .context("cannot connect")?;
    let mut head = vec![mode];
    head.extend(count.to_le_bytes());
    stream.write_all(&head)?;
    Ok(stream)
}

fn nanoseconds(times: &[std::time::Duration]) -> String {
    let words = times.iter().map(|time| time.as_nanos().to_string());
    words.collect::<Vec<_>>().join(" ")
}
