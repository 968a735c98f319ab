//! A VMM with the kernel's device and its guest, which connects and listens as commands tell it.

use std::collections::HashMap;
use std::fmt::Display;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hvsock::ServiceId;
use hvsock_endpoint::LookupKind;
use hvsock_endpoint::uplink::UPLINK_PORT;
use hvsock_sys::sync::lock;
use hvsock_testkit::guest::{
    CloseReason, Guest, GuestListener, GuestStream, HOST, Layout, Options,
};
use hvsock_testkit::uplink::Client;
use hvsock_virtio::{Header, Operation, SocketKind};

use crate::tell::{self, Answer, number};
use crate::{bridge, load};

/// The time limit of a connect that is to end otherwise, also on an emulated processor that waits for its turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// The time limit of a connect that may have no answer.
const UNANSWERED: Duration = Duration::from_secs(2);
/// How long a read may wait: longer than anything takes on an emulated processor.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the guest is stopped if nobody resumes it.
const LONGEST_STOP: Duration = Duration::from_secs(60);

struct Vm {
    guest: Arc<Guest>,
    cid: u64,
    /// The ports that it listens on.
    listeners: Mutex<HashMap<u32, Arc<Listening>>>,
    /// Connections that `hold` has made.
    held: Mutex<Vec<GuestStream>>,
    /// Ends a `hang` or `pause`, and waits for its end.
    stopped: Mutex<Option<Stopped>>,
}

/// A guest that is stopped until `resume` is dropped. Then its result is in `ended`.
struct Stopped {
    resume: Sender<()>,
    ended: Receiver<Result<(), String>>,
}

#[derive(Default)]
struct Listening {
    stop: AtomicBool,
    /// The peers whose connections it has accepted.
    peers: Mutex<Vec<(u64, u32)>>,
}

/// Starts the VM and serves commands until it is told to end.
pub fn serve(options: &[&str]) -> Answer {
    let value = |name: &str| {
        let at = options.iter().position(|option| *option == name);
        let value = at.and_then(|at| options.get(at + 1));
        value.copied().ok_or_else(|| format!("{name} is missing"))
    };
    let cid = number(value("--cid")?)?;
    let guest = Guest::start(Path::new(""), Options::kernel(cid))
        .map_err(|error| format!("cannot start the VM with CID {cid}: {error}"))?;
    if options.contains(&"--child") {
        inherited_by_a_child(&guest, value("--control")?)?;
    }
    let vm = Vm {
        guest: Arc::new(guest),
        stopped: Mutex::default(),
        cid,
        listeners: Mutex::default(),
        held: Mutex::default(),
    };
    tell::serve(value("--control")?.as_ref(), |words| vm.act(words))
}

/// Starts a process that inherits the device and outlives this one. Its id is in the file `CONTROL.child`.
fn inherited_by_a_child(guest: &Guest, control: &str) -> Result<(), String> {
    let start = || {
        guest.with_driver(|driver| match driver.kernel_device() {
            Some(device) => device.set_inheritable(),
            None => Err(ErrorKind::NotConnected.into()),
        })?;
        let child = Command::new("sleep")
            .arg("1000")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        std::fs::write(format!("{control}.child"), child.id().to_string())
    };
    start().map_err(|error| error.to_string())
}

impl Vm {
    fn act(&self, words: &[&str]) -> Answer {
        match *words {
            // Sends a text, and returns what comes back until the end.
            ["connect", port, text] => {
                let stream = self.connect(number(port)?)?;
                exchange(&stream, text)
            }
            // Looks the name of a service up at the host's broker.
            ["lookup", name] => {
                let mut client = Client::new(self.connect(UPLINK_PORT)?);
                let found = client.look_up(LookupKind::Service, name);
                let id = |guid| ServiceId::from_guid_bytes(guid).to_string();
                found
                    .map(id)
                    .map_err(|code| format!("refused by code {code}"))
            }
            // The same from a given port.
            ["connect-from", local, port, text] => {
                let guest = &self.guest;
                let (local, port) = (number(local)?, number(port)?);
                let kind = SocketKind::Stream;
                let stream = guest.connect_from(local, kind, HOST, port, CONNECT_TIMEOUT);
                exchange(&stream.map_err(reason)?, text)
            }
            // The same to another context id than the host's, or to another kind of socket.
            ["connect-to", cid, port, text] => {
                let (cid, port) = (number(cid)?, number(port)?);
                let kind = SocketKind::Stream;
                let stream = self.guest.connect_to(kind, cid, port, UNANSWERED);
                exchange(&stream.map_err(reason)?, text)
            }
            ["connect-seqpacket", port] => {
                let (kind, port) = (SocketKind::Seqpacket, number(port)?);
                let stream = self.guest.connect_to(kind, HOST, port, CONNECT_TIMEOUT);
                stream.map(|_| String::new()).map_err(reason)
            }
            // Sends bytes to a service that echoes, and checks each.
            ["echo", port, bytes] => self.echo(number(port)?, number(bytes)?),
            // Sends bytes, half-closes and waits for the end.
            ["send", port, bytes] => self.send(number(port)?, number(bytes)?),
            // Connects and closes many times.
            ["flood", port, count] => self.flood(number(port)?, number(count)?),
            // Keeps connections open until `release`.
            ["hold", port, count] => self.hold(number(port)?, number(count)?),
            ["release"] => {
                let held = std::mem::take(&mut *lock(&self.held));
                Ok(held.len().to_string())
            }
            // How many of the held connections are closed, and by what.
            ["held"] => Ok(self.held()),
            // Connection requests that name other senders.
            ["forge", port, ref senders @ ..] => self.forge(number(port)?, senders),
            // Packets of no connection, with these operations, known or not.
            ["packets", to, ref ops @ ..] => {
                for op in ops {
                    let header = self.header(number(op)?, 900, number(to)?);
                    let data: &[u8] = match header.operation() {
                        Some(Operation::Data) => &[0; 100],
                        _ => &[],
                    };
                    let len = data.len() as u32;
                    self.send_raw(&Header { len, ..header }, data)?;
                }
                Ok(String::new())
            }
            ["listen", port, ref how @ ..] => self.listen(number(port)?, how),
            ["unlisten", port] => {
                let port: u32 = number(port)?;
                let listening = lock(&self.listeners).remove(&port);
                let listening = listening.ok_or("it does not listen there")?;
                listening.stop.store(true, Ordering::Relaxed);
                Ok(String::new())
            }
            ["peers", port] => {
                let port: u32 = number(port)?;
                let listeners = lock(&self.listeners);
                let listening = listeners.get(&port).ok_or("it does not listen there")?;
                let peers = lock(&listening.peers);
                let shown = peers.iter().map(|(cid, port)| format!("{cid}:{port}"));
                Ok(shown.collect::<Vec<_>>().join(" "))
            }
            // The guest's processors stop until `resume`: it answers nothing.
            ["hang"] => self.stop(|guest, wait| {
                guest.with_driver(|_| wait());
                Ok(())
            }),
            // The VMM stops the device until `resume`, as for a pause.
            ["pause"] => self.stop(|guest, wait| guest.pause(|_| wait()).map_err(reason)),
            ["resume"] => {
                let stopped = lock(&self.stopped).take().ok_or("it is not stopped")?;
                drop(stopped.resume);
                let ended = stopped.ended.recv().map_err(|error| error.to_string())?;
                ended.map(|()| String::new())
            }
            ["reboot"] => self.guest.reboot().map(|()| String::new()).map_err(reason),
            ["state"] => {
                let (connections, violations) =
                    (self.guest.connections(), self.guest.protocol_violations());
                Ok(format!(
                    "{connections} connections, violations {violations:?}"
                ))
            }
            ["cid"] => Ok(self.cid.to_string()),
            // As a VMM that crashes: nothing is closed first.
            ["die"] => std::process::abort(),
            _ => Err(format!("unknown command {words:?}")),
        }
    }

    /// Runs `stop` on a thread of its own, and returns once it waits.
    fn stop(
        &self,
        stop: impl FnOnce(&Guest, &mut dyn FnMut()) -> Result<(), String> + Send + 'static,
    ) -> Answer {
        let guest = Arc::clone(&self.guest);
        let (resume, resumed) = mpsc::channel::<()>();
        let (waits, waiting) = mpsc::channel();
        let (ends, ended) = mpsc::channel();
        thread::spawn(move || {
            let mut wait = || {
                let _ = waits.send(());
                let _ = resumed.recv_timeout(LONGEST_STOP);
            };
            let _ = ends.send(stop(&guest, &mut wait));
        });
        let waits = waiting.recv().map_err(|error| error.to_string());
        *lock(&self.stopped) = Some(Stopped { resume, ended });
        waits.map(|()| String::new())
    }

    fn connect(&self, port: u32) -> Result<GuestStream, String> {
        let stream = self.guest.connect(port).map_err(reason)?;
        stream.set_read_timeout(Some(READ_TIMEOUT));
        stream.set_write_timeout(Some(READ_TIMEOUT));
        Ok(stream)
    }

    fn echo(&self, port: u32, bytes: u64) -> Answer {
        let stream = self.connect(port)?;
        let start = Instant::now();
        let (sent, received) = thread::scope(|scope| {
            let sender = scope.spawn(|| {
                load::write(&stream, bytes).and_then(|()| stream.shutdown(Shutdown::Write))
            });
            let received = load::read(&stream);
            (sender.join(), received)
        });
        let received = received.map_err(reason)?;
        match sent {
            Ok(sent) => sent.map_err(reason)?,
            Err(_) => return Err("the sender has panicked".into()),
        }
        if received != bytes {
            return Err(format!("{received} bytes came back, not {bytes}"));
        }
        Ok(load::rate(bytes, start))
    }

    fn send(&self, port: u32, bytes: u64) -> Answer {
        let stream = self.connect(port)?;
        let start = Instant::now();
        load::write(&stream, bytes).map_err(reason)?;
        stream.shutdown(Shutdown::Write).map_err(reason)?;
        let mut rest = Vec::new();
        (&stream).read_to_end(&mut rest).map_err(reason)?;
        Ok(load::rate(bytes, start))
    }

    fn flood(&self, port: u32, count: u32) -> Answer {
        let start = Instant::now();
        let mut ends: HashMap<String, u32> = HashMap::new();
        for _ in 0..count {
            let end = match self.guest.connect(port) {
                Ok(stream) => {
                    stream.reset();
                    "connected".to_owned()
                }
                Err(error) => reason(error),
            };
            *ends.entry(end).or_default() += 1;
        }
        let mut ends: Vec<String> = ends
            .into_iter()
            .map(|(end, count)| format!("{count} {end}"))
            .collect();
        ends.sort();
        let rate = f64::from(count) / start.elapsed().as_secs_f64().max(1e-6);
        Ok(format!("{} at {rate:.0}/s", ends.join(", ")))
    }

    fn hold(&self, port: u32, count: u32) -> Answer {
        let mut refused = 0;
        for _ in 0..count {
            match self.guest.connect(port) {
                Ok(stream) => lock(&self.held).push(stream),
                Err(_) => refused += 1,
            }
        }
        Ok(format!(
            "{} held, {refused} refused",
            lock(&self.held).len()
        ))
    }

    fn held(&self) -> String {
        let held = lock(&self.held);
        let count = |end: Option<CloseReason>| {
            let ends = held.iter().map(GuestStream::close_reason);
            ends.filter(|reason| *reason == end).count()
        };
        format!(
            "{} open, {} clean, {} reset",
            count(None),
            count(Some(CloseReason::Clean)),
            count(Some(CloseReason::Reset))
        )
    }

    /// A later connect of the guest's own is the barrier: the kernel handles packets in order.
    fn forge(&self, port: u32, senders: &[&str]) -> Answer {
        let before = self.guest.protocol_violations().len();
        for cid in senders {
            let header = Header {
                src_cid: number(cid)?,
                buf_alloc: 1 << 16,
                ..self.header(Operation::Request as u16, 5000, port)
            };
            self.send_raw(&header, &[])?;
        }
        let own = self.connect(port).map(drop);
        let answers = self.guest.protocol_violations().len() - before;
        let own = own.map_or_else(|error| error, |()| "connected".to_owned());
        Ok(format!(
            "{answers} answers to {} forged senders, its own request: {own}",
            senders.len()
        ))
    }

    fn header(&self, op: u16, from: u32, to: u32) -> Header {
        Header {
            src_cid: self.cid,
            dst_cid: HOST,
            src_port: from,
            dst_port: to,
            kind: SocketKind::Stream as u16,
            op,
            ..Header::default()
        }
    }

    fn send_raw(&self, header: &Header, data: &[u8]) -> Answer {
        let send = |driver: &mut hvsock_testkit::guest::Driver| {
            driver.send(header, data, &Layout::default())
        };
        let sent = self.guest.with_driver(send);
        sent.map(|()| String::new()).map_err(reason)
    }

    fn listen(&self, port: u32, how: &[&str]) -> Answer {
        let serve: Serve = match *how {
            ["echo"] => Arc::new(|stream| bridge::pump(stream, stream)),
            // Reads everything, and tells how much at the end.
            ["sink"] => Arc::new(|stream| {
                let bytes = load::count(stream)?;
                writeln!(&mut &*stream, "{bytes} bytes")
            }),
            // Sends a load, then the end.
            ["source", bytes] => {
                let bytes = number(bytes)?;
                Arc::new(move |stream| load::write(stream, bytes))
            }
            // Reads nothing, and waits for the peer's end.
            ["idle"] => Arc::new(|stream| {
                while stream.close_reason().is_none() {
                    thread::sleep(Duration::from_millis(20));
                }
                Ok(())
            }),
            ["unix", path] => {
                let path = path.to_owned();
                Arc::new(move |stream| bridge::to_unix(stream, &path, half_close(stream)))
            }
            ["program", ref command @ ..] => {
                let command = command.join(" ");
                Arc::new(move |stream| bridge::to_program(stream, &command, half_close(stream)))
            }
            _ => return Err(format!("unknown way to listen {how:?}")),
        };
        let listener = self.guest.listen(port).map_err(reason)?;
        let listening = Arc::<Listening>::default();
        lock(&self.listeners).insert(port, Arc::clone(&listening));
        thread::spawn(move || accept(&listener, &listening, &serve));
        Ok(String::new())
    }
}

/// What a listener does with a connection.
type Serve = Arc<dyn Fn(&GuestStream) -> io::Result<()> + Send + Sync>;

fn accept(listener: &GuestListener, listening: &Listening, serve: &Serve) {
    while !listening.stop.load(Ordering::Relaxed) {
        let Ok(stream) = listener.accept(Duration::from_millis(200)) else {
            continue;
        };
        lock(&listening.peers).push(stream.peer());
        let serve = Arc::clone(serve);
        thread::spawn(move || {
            if serve(&stream).is_err() {
                stream.reset();
                return;
            }
            // Waits for the peer's end, so that a close after the last byte is no reset.
            let _ = stream.shutdown(Shutdown::Write);
            stream.set_read_timeout(Some(READ_TIMEOUT));
            let _ = load::count(&stream);
        });
    }
}

fn half_close(stream: &GuestStream) -> impl FnOnce() {
    let stream = stream.clone();
    move || drop(stream.shutdown(Shutdown::Write))
}

/// Sends a text and half-closes. Returns what comes back until the end.
fn exchange(stream: &GuestStream, text: &str) -> Answer {
    stream.set_read_timeout(Some(READ_TIMEOUT));
    // A service that reads nothing may have closed already. What it has sent counts.
    let sent = (&mut &*stream).write_all(text.as_bytes());
    let sent = sent.and_then(|()| stream.shutdown(Shutdown::Write));
    let mut reply = Vec::new();
    let received = (&mut &*stream).read_to_end(&mut reply);
    let exchange = || match received {
        Ok(0) => sent.map(|()| reply),
        Ok(_) => Ok(reply),
        Err(error) => Err(error),
    };
    let reply = exchange().map_err(reason)?;
    Ok(String::from_utf8_lossy(&reply).trim_end().to_owned())
}

/// One word for the usual errors, so that scenarios compare it.
fn reason(error: impl Into<io::Error> + Display) -> String {
    let error = error.into();
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused".to_owned(),
        ErrorKind::TimedOut => "timed-out".to_owned(),
        ErrorKind::ConnectionReset => "reset".to_owned(),
        ErrorKind::BrokenPipe => "broken-pipe".to_owned(),
        _ => error.to_string(),
    }
}
