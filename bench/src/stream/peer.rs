//! The peer process of a run. It accepts all lanes and serves their requests.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::thread;

use anyhow::Context;
use hvsock::{ConnectOptions, HvListener, HvStream, ServiceId, VmId};
use serde::Serialize;

use super::asynchronous::{self, Asynchronous};
use super::blocking::{self, Blocking};
use super::{Lane, LaneKind, hvsock_lane};
use crate::broker::DIRECT_PORTS;

/// First argument that makes a bench's program run as a peer.
pub const ROLE: &str = "role-peer";

/// The API by which both processes use their streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    /// `Read` and `Write`, with one thread of the peer for each lane.
    Blocking,
    /// tokio, with one thread for all lanes.
    Tokio,
}

impl Style {
    fn word(self) -> &'static str {
        match self {
            Self::Blocking => "blocking",
            Self::Tokio => "tokio",
        }
    }
}

/// A running peer process. Dropping it ends the process.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    folder: tempfile::TempDir,
    style: Style,
    options: ConnectOptions,
    service: ServiceId,
    port: u16,
}

/// A lane and its name in tables.
pub struct NamedLane {
    /// The name. For hvsock it includes the transport.
    pub name: String,
    /// The kind of lane.
    pub over: LaneKind,
    /// The lane.
    pub lane: Box<dyn Lane>,
}

impl Peer {
    /// Starts this program as a peer.
    pub fn start(style: Style, endpoint: &Path) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("hvs").tempdir()?;
        let service = ServiceId::random();
        let mut child = Command::new(std::env::current_exe()?)
            .args([ROLE, style.word(), &service.to_string()])
            .args([endpoint, &socket_in(folder.path())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().context("the peer has no stdout")?;
        BufReader::new(output).read_line(&mut line)?;
        let port = line.trim().parse();
        Ok(Self {
            port: port.with_context(|| format!("the peer did not start: {line}"))?,
            options: ConnectOptions::new().endpoint(endpoint),
            child,
            folder,
            style,
            service,
        })
    }

    /// The API that the peer uses.
    pub fn style(&self) -> Style {
        self.style
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Connects all lanes.
    pub fn lanes(&self) -> anyhow::Result<Vec<NamedLane>> {
        match self.style {
            Style::Blocking => self.blocking_lanes(),
            Style::Tokio => self.tokio_lanes(),
        }
    }

    fn blocking_lanes(&self) -> anyhow::Result<Vec<NamedLane>> {
        let unix = || UnixStream::connect(socket_in(self.folder.path()));
        let hvsock = |over: LaneKind, options: &ConnectOptions| -> anyhow::Result<NamedLane> {
            let service = self.service_of(over);
            let stream: HvStream = options.connect((VmId::LOOPBACK, service))?;
            let state = match over {
                LaneKind::HvsockNoSpin => ", no spin",
                LaneKind::HvsockParked => ", both parked",
                _ => "",
            };
            let name = format!("hvsock {}{state}", hvsock_lane::transport(&stream));
            Ok(named(&name, over, Blocking::new(stream, over)?))
        };
        let descriptor = hvsock_lane::without_shared_memory(self.options.clone());
        Ok(vec![
            named(
                "Unix socket",
                LaneKind::Unix,
                Blocking::new(unix()?, LaneKind::Unix)?,
            ),
            named(
                "TCP",
                LaneKind::Tcp,
                Blocking::new(self.tcp()?, LaneKind::Tcp)?,
            ),
            hvsock(LaneKind::Hvsock, &self.options)?,
            hvsock(LaneKind::HvsockNoSpin, &self.options)?,
            hvsock(LaneKind::HvsockDescriptor, &descriptor)?,
            hvsock(LaneKind::HvsockDirect, &self.options)?,
            named(
                "Unix socket, both parked",
                LaneKind::UnixParked,
                Blocking::new(unix()?, LaneKind::UnixParked)?,
            ),
            hvsock(LaneKind::HvsockParked, &self.options)?,
        ])
    }

    fn tokio_lanes(&self) -> anyhow::Result<Vec<NamedLane>> {
        let runtime = Rc::new(asynchronous::runtime()?);
        let (unix, tcp) = runtime.block_on(async {
            let unix = tokio::net::UnixStream::connect(socket_in(self.folder.path())).await?;
            let tcp = self.tcp()?;
            tcp.set_nonblocking(true)?;
            Ok::<_, std::io::Error>((unix, tokio::net::TcpStream::from_std(tcp)?))
        })?;
        let mut lanes = vec![
            named(
                "Unix socket",
                LaneKind::Unix,
                Asynchronous::new(&runtime, unix)?,
            ),
            named("TCP", LaneKind::Tcp, Asynchronous::new(&runtime, tcp)?),
        ];
        let descriptor = hvsock_lane::without_shared_memory(self.options.clone());
        for (over, options) in [
            (LaneKind::Hvsock, &self.options),
            (LaneKind::HvsockDescriptor, &descriptor),
            (LaneKind::HvsockDirect, &self.options),
        ] {
            let address = (VmId::LOOPBACK, self.service_of(over));
            let stream = runtime.block_on(async {
                hvsock::tokio::HvStream::connect_with(options, address).await
            })?;
            let name = format!("hvsock {}", hvsock_lane::transport_in_tokio(&stream));
            lanes.push(named(&name, over, Asynchronous::new(&runtime, stream)?));
        }
        Ok(lanes)
    }

    /// The service to which a lane connects.
    fn service_of(&self, over: LaneKind) -> ServiceId {
        match over {
            LaneKind::HvsockDirect => direct_service(self.style),
            _ => self.service,
        }
    }

    fn tcp(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        // Otherwise the last write of a turn waits for a delayed acknowledgement.
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The process exits at end of file on stdin.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn named(name: &str, over: LaneKind, lane: impl Lane + 'static) -> NamedLane {
    NamedLane {
        name: name.to_owned(),
        over,
        lane: Box::new(lane),
    }
}

/// The service that the broker of a run has registered as direct for the peer of this style.
fn direct_service(style: Style) -> ServiceId {
    let [blocking, tokio] = DIRECT_PORTS;
    ServiceId::from_port(match style {
        Style::Blocking => blocking,
        Style::Tokio => tokio,
    })
}

fn socket_in(folder: &Path) -> PathBuf {
    folder.join("s")
}

/// Body of the peer process, with the arguments behind [`ROLE`]: serves until end of file on stdin.
pub fn serve(arguments: &[&str]) -> anyhow::Result<()> {
    let &[style, service, endpoint, socket] = arguments else {
        anyhow::bail!("a peer takes four arguments");
    };
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let unix = UnixListener::bind(socket)?;
    let style = if style == Style::Tokio.word() {
        Style::Tokio
    } else {
        Style::Blocking
    };
    let service: ServiceId = service.parse()?;
    let hvsock = HvListener::options()
        .endpoint(PathBuf::from(endpoint))
        .listen((VmId::LOOPBACK, service))?;
    let direct = HvListener::options()
        .endpoint(PathBuf::from(endpoint))
        .listen((VmId::LOOPBACK, direct_service(style)))?;
    println!("{}", tcp.local_addr()?.port());
    if style == Style::Tokio {
        thread::spawn(move || print_error(serve_with_tokio(tcp, unix, [hvsock, direct])));
    } else {
        thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                print_error(stream.set_nodelay(true).map_err(Into::into));
                serve_one(stream);
            }
        });
        thread::spawn(move || unix.incoming().flatten().for_each(serve_one));
        for listener in [hvsock, direct] {
            thread::spawn(move || listener.incoming().flatten().for_each(serve_one));
        }
    }
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn serve_one(stream: impl blocking::Stream) {
    thread::spawn(move || print_error(blocking::serve(stream)));
}

fn serve_with_tokio(
    tcp: TcpListener,
    unix: UnixListener,
    hvsock: [HvListener; 2],
) -> anyhow::Result<()> {
    tcp.set_nonblocking(true)?;
    unix.set_nonblocking(true)?;
    asynchronous::runtime()?.block_on(async {
        let tcp = tokio::net::TcpListener::from_std(tcp)?;
        let unix = tokio::net::UnixListener::from_std(unix)?;
        let [hvsock, direct] = hvsock.map(hvsock::tokio::HvListener::from_std);
        let (hvsock, direct) = (hvsock?, direct?);
        loop {
            tokio::select! {
                accepted = tcp.accept() => {
                    let (stream, _) = accepted?;
                    stream.set_nodelay(true)?;
                    spawn(stream);
                }
                accepted = unix.accept() => spawn(accepted?.0),
                accepted = hvsock.accept() => spawn(accepted?.0),
                accepted = direct.accept() => spawn(accepted?.0),
            }
        }
    })
}

fn spawn(stream: impl asynchronous::Stream) {
    tokio::spawn(async move { print_error(asynchronous::serve(stream).await) });
}

/// Prints an error: the other process only sees the lane end.
fn print_error(result: anyhow::Result<()>) {
    if let Err(error) = result {
        eprintln!("the peer: {error:#}");
    }
}
