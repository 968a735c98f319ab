//! The other process of a run: it accepts every lane and does what it is asked.

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
use super::{Lane, Over, ours};

/// The first argument by which a measurement's program becomes a peer.
pub const ROLE: &str = "role-peer";

/// How both processes use their streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    /// With `Read` and `Write`, and a thread for each lane of the peer.
    Blocking,
    /// With tokio, and one thread for all.
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

/// A running peer; it ends with this.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    folder: tempfile::TempDir,
    style: Style,
    options: ConnectOptions,
    service: ServiceId,
    port: u16,
}

/// A lane with its name in tables.
pub struct Named {
    /// hvsock's has the transport in it.
    pub name: String,
    /// What it goes over.
    pub over: Over,
    /// The lane.
    pub lane: Box<dyn Lane>,
}

impl Peer {
    /// Starts this very program again as a peer.
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
        let output = child.stdout.take().context("the peer has no output")?;
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

    /// How it uses its streams.
    pub fn style(&self) -> Style {
        self.style
    }

    /// The process's number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Connects all lanes.
    pub fn lanes(&self) -> anyhow::Result<Vec<Named>> {
        match self.style {
            Style::Blocking => self.blocking_lanes(),
            Style::Tokio => self.tokio_lanes(),
        }
    }

    fn blocking_lanes(&self) -> anyhow::Result<Vec<Named>> {
        let unix = || UnixStream::connect(socket_in(self.folder.path()));
        let ours = |over: Over, options: &ConnectOptions| -> anyhow::Result<Named> {
            let stream: HvStream = options.connect((VmId::LOOPBACK, self.service))?;
            let state = match over {
                Over::OursParked => ", parked",
                Over::OursRested => ", rested",
                _ => "",
            };
            let name = format!("hvsock {}{state}", ours::transport(&stream));
            Ok(named(&name, over, Blocking::new(stream, over)?))
        };
        let descriptor = ours::without_shared_memory(self.options.clone());
        Ok(vec![
            named(
                "Unix socket",
                Over::Unix,
                Blocking::new(unix()?, Over::Unix)?,
            ),
            named("TCP", Over::Tcp, Blocking::new(self.tcp()?, Over::Tcp)?),
            ours(Over::Ours, &self.options)?,
            ours(Over::OursParked, &self.options)?,
            ours(Over::OursDescriptor, &descriptor)?,
            named(
                "Unix socket, rested",
                Over::UnixRested,
                Blocking::new(unix()?, Over::UnixRested)?,
            ),
            ours(Over::OursRested, &self.options)?,
        ])
    }

    fn tokio_lanes(&self) -> anyhow::Result<Vec<Named>> {
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
                Over::Unix,
                Asynchronous::new(&runtime, unix)?,
            ),
            named("TCP", Over::Tcp, Asynchronous::new(&runtime, tcp)?),
        ];
        let descriptor = ours::without_shared_memory(self.options.clone());
        for (over, options) in [
            (Over::Ours, &self.options),
            (Over::OursDescriptor, &descriptor),
        ] {
            let address = (VmId::LOOPBACK, self.service);
            let stream = runtime.block_on(async {
                hvsock::tokio::HvStream::connect_with(options, address).await
            })?;
            let name = format!("hvsock {}", ours::transport_in_tokio(&stream));
            lanes.push(named(&name, over, Asynchronous::new(&runtime, stream)?));
        }
        Ok(lanes)
    }

    fn tcp(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        // Without it the last write of a turn would wait for a delayed acknowledgement.
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The end of its input ends it.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn named(name: &str, over: Over, lane: impl Lane + 'static) -> Named {
    Named {
        name: name.to_owned(),
        over,
        lane: Box::new(lane),
    }
}

fn socket_in(folder: &Path) -> PathBuf {
    folder.join("s")
}

/// What the program does as a peer, with the arguments that follow [`ROLE`]: serves until its
/// input ends.
pub fn serve(arguments: &[&str]) -> anyhow::Result<()> {
    let &[style, service, endpoint, socket] = arguments else {
        anyhow::bail!("a peer has four arguments");
    };
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let unix = UnixListener::bind(socket)?;
    let service: ServiceId = service.parse()?;
    let ours = HvListener::options()
        .endpoint(PathBuf::from(endpoint))
        .listen((VmId::LOOPBACK, service))?;
    println!("{}", tcp.local_addr()?.port());
    if style == Style::Tokio.word() {
        thread::spawn(move || complain(serve_with_tokio(tcp, unix, ours)));
    } else {
        thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                complain(stream.set_nodelay(true).map_err(Into::into));
                serve_one(stream);
            }
        });
        thread::spawn(move || unix.incoming().flatten().for_each(serve_one));
        thread::spawn(move || ours.incoming().flatten().for_each(serve_one));
    }
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn serve_one(stream: impl blocking::Stream) {
    thread::spawn(move || complain(blocking::serve(stream)));
}

fn serve_with_tokio(tcp: TcpListener, unix: UnixListener, ours: HvListener) -> anyhow::Result<()> {
    tcp.set_nonblocking(true)?;
    unix.set_nonblocking(true)?;
    asynchronous::runtime()?.block_on(async {
        let tcp = tokio::net::TcpListener::from_std(tcp)?;
        let unix = tokio::net::UnixListener::from_std(unix)?;
        let ours = hvsock::tokio::HvListener::from_std(ours)?;
        loop {
            tokio::select! {
                accepted = tcp.accept() => {
                    let (stream, _) = accepted?;
                    stream.set_nodelay(true)?;
                    spawn(stream);
                }
                accepted = unix.accept() => spawn(accepted?.0),
                accepted = ours.accept() => spawn(accepted?.0),
            }
        }
    })
}

fn spawn(stream: impl asynchronous::Stream) {
    tokio::spawn(async move { complain(asynchronous::serve(stream).await) });
}

/// The other process sees a lane end; why it did is only known here.
fn complain(result: anyhow::Result<()>) {
    if let Err(error) = result {
        eprintln!("the peer: {error:#}");
    }
}
