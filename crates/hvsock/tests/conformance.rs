//! The conformance suite over the asynchronous pair: the same connections as in the broker's own
//! run of it, each operation driven by a runtime that all cases share.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hvsock::tokio::{HvListener, HvStream, OwnedReadHalf, OwnedWriteHalf};
use hvsock::{
    ConnectOptions, Endpoint, Lease, ListenOptions, ServiceId, Transport as Carrier, VmId,
};
use hvsock_broker::{Broker, BrokerConfig};
use hvsock_endpoint::Dirs;
use hvsock_testkit::TempFolder;
use hvsock_testkit::conformance::{
    self, LONGEST_WAIT, Listen, Listener, Ready, Reset, Stream, Transport,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));
static HOST: LazyLock<Host> = LazyLock::new(Host::start);

fn main() -> ExitCode {
    let carriers = [Carrier::Ring, Carrier::Descriptor];
    let kinds = carriers.map(|carrier| conformance::trials(Asynchronous { carrier }));
    conformance::main(kinds.into_iter().flatten().collect())
}

/// A broker, and listeners by port.
struct Host {
    folder: TempFolder,
    broker: Broker,
    next_port: AtomicU32,
    /// Makes one pair at a time, so that each connect meets its own accept.
    pairs: Mutex<Option<Listening>>,
}

impl Host {
    fn start() -> Self {
        let folder = TempFolder::new();
        let dirs = Dirs {
            run: folder.path().to_owned(),
            config: folder.path().to_owned(),
        };
        let mut config = BrokerConfig::new(dirs);
        config.control = false;
        let broker = Broker::start(config).expect("a broker");
        Self {
            folder,
            broker,
            next_port: AtomicU32::new(1),
            pairs: Mutex::default(),
        }
    }

    fn listen(&self, backlog: u32) -> io::Result<Listening> {
        Listening::new(
            self.folder.path(),
            self.next_port.fetch_add(1, Ordering::Relaxed),
            backlog,
        )
    }
}

struct Listening {
    listener: HvListener,
    endpoint: Endpoint,
    service: ServiceId,
    _lease: Lease,
}

impl Listening {
    fn new(folder: &Path, port: u32, backlog: u32) -> io::Result<Self> {
        let (endpoint, service) = (Endpoint::in_dir(folder), ServiceId::from_port(port));
        let lease = Lease::register_at(&endpoint, &format!("Pair {port}"), service, "")?;
        let options = ListenOptions::new().endpoint(&endpoint).backlog(backlog);
        let listener = HvListener::bind_with(&options, (VmId::WILDCARD, service));
        let listener = RUNTIME.block_on(listener)?;
        Ok(Self {
            listener,
            endpoint,
            service,
            _lease: lease,
        })
    }

    fn connect_by(&self, carrier: Carrier) -> io::Result<Asynchronously> {
        let options = ConnectOptions::new()
            .endpoint(&self.endpoint)
            .timeout(LONGEST_WAIT)
            .shared_memory(carrier == Carrier::Ring);
        let connect = HvStream::connect_with(&options, (VmId::LOOPBACK, self.service));
        let stream = RUNTIME.block_on(connect)?;
        assert_eq!(stream.transport(), carrier);
        Ok(Asynchronously::new(stream))
    }

    fn accept(&self, timeout: Duration) -> io::Result<Asynchronously> {
        let (stream, _) = bounded(timeout, self.listener.accept())?;
        Ok(Asynchronously::new(stream))
    }
}

/// One of the listeners, and how the connections to it are to move their bytes.
struct By(Listening, Carrier);

impl Listener<Asynchronously> for By {
    fn connect(&self) -> io::Result<Asynchronously> {
        self.0.connect_by(self.1)
    }

    fn accept(&self, timeout: Duration) -> io::Result<Asynchronously> {
        self.0.accept(timeout)
    }
}

/// Drives a future to its end on the shared runtime, or gives up on it.
fn bounded<T>(limit: Duration, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    RUNTIME.block_on(async {
        match tokio::time::timeout(limit, future).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    })
}

struct Asynchronous {
    carrier: Carrier,
}

impl Transport for Asynchronous {
    type Stream = Asynchronously;

    fn name(&self) -> &'static str {
        match self.carrier {
            Carrier::Ring => "asynchronous_ring",
            _ => "asynchronous_descriptor",
        }
    }

    fn pair(&self) -> io::Result<(Asynchronously, Asynchronously)> {
        let mut pairs = HOST.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        let listening = match &mut *pairs {
            Some(listening) => listening,
            none => none.insert(HOST.listen(128)?),
        };
        let connector = listening.connect_by(self.carrier)?;
        Ok((connector, listening.accept(LONGEST_WAIT)?))
    }

    fn reset(&self) -> Option<Reset<Self>> {
        Some(|_, stream| {
            let cut = HOST.broker.handle().cut(stream.connection_id());
            cut.map(drop).map_err(io::Error::other)
        })
    }

    fn listen(&self) -> Option<Listen<Self>> {
        Some(|transport, backlog| Ok(Box::new(By(HOST.listen(backlog)?, transport.carrier))))
    }
}

/// The halves of a stream, so that one thread can read while another writes.
struct Asynchronously {
    read: Mutex<OwnedReadHalf>,
    write: Mutex<OwnedWriteHalf>,
    mode: Mutex<Mode>,
}

#[derive(Clone, Copy)]
struct Mode {
    nonblocking: bool,
    read_limit: Duration,
    write_limit: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Asynchronously {
    fn new(stream: HvStream) -> Self {
        let (read, write) = stream.into_split();
        let limit = LONGEST_WAIT;
        let mode = Mode {
            nonblocking: false,
            read_limit: limit,
            write_limit: limit,
        };
        Self {
            read: Mutex::new(read),
            write: Mutex::new(write),
            mode: Mutex::new(mode),
        }
    }

    fn mode(&self) -> Mode {
        *lock(&self.mode)
    }

    fn connection_id(&self) -> u64 {
        let read = lock(&self.read);
        let stream: &HvStream = (*read).as_ref();
        stream.connection_id()
    }
}

impl Stream for Asynchronously {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (mut read, mode) = (lock(&self.read), self.mode());
        match mode.nonblocking {
            true => (*read).as_ref().try_read(buffer),
            false => bounded(mode.read_limit, read.read(buffer)),
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let (mut write, mode) = (lock(&self.write), self.mode());
        match mode.nonblocking {
            true => (*write).as_ref().try_write(bytes),
            false => bounded(mode.write_limit, write.write(bytes)),
        }
    }

    fn shutdown_write(&self) -> io::Result<()> {
        RUNTIME.block_on(lock(&self.write).shutdown())
    }

    fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        lock(&self.mode).read_limit = timeout;
        Ok(())
    }

    fn set_write_timeout(&self, timeout: Duration) -> io::Result<()> {
        lock(&self.mode).write_limit = timeout;
        Ok(())
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        lock(&self.mode).nonblocking = nonblocking;
        Ok(())
    }

    fn wait(&self, interest: Ready, timeout: Duration) -> io::Result<Ready> {
        let (read, write) = (lock(&self.read), lock(&self.write));
        let (reader, writer): (&HvStream, &HvStream) = ((*read).as_ref(), (*write).as_ref());
        let ready = bounded(timeout, async {
            tokio::select! {
                result = reader.readable(), if interest.read => result.map(|()| Ready::READ),
                result = writer.writable(), if interest.write => result.map(|()| Ready::WRITE),
            }
        });
        let now = |future| match bounded(Duration::from_millis(1), future) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(false),
            Err(error) => Err(error),
        };
        match ready {
            Ok(_) => Ok(Ready {
                read: interest.read && now(Box::pin(reader.readable()) as Waiting<'_>)?,
                write: interest.write && now(Box::pin(writer.writable()))?,
            }),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(Ready::NONE),
            Err(error) => Err(error),
        }
    }
}

type Waiting<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + 'a>>;
