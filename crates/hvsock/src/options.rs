//! How to connect and how to listen, where the defaults are not enough.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hvsock_address::HVSOCKET_CONNECT_TIMEOUT_MAX;
use hvsock_endpoint::Flags;

use crate::backend::{self, ANSWER_BOUND, Outcome, Request, RequestKind, Settings};
use crate::{Endpoint, Explanation, HvListener, HvStream, ToHvAddr, error};

/// How long connecting may take where nobody says otherwise, as on Windows.
pub(crate) const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How many connections may wait to be accepted where nobody says otherwise, as in `std::net`.
const DEFAULT_BACKLOG: u32 = 128;

/// How to connect.
///
/// ```no_run
/// use std::time::Duration;
/// use hvsock::HvStream;
///
/// # fn main() -> std::io::Result<()> {
/// let stream = HvStream::options()
///     .endpoint("/tmp/demo/endpoint")
///     .timeout(Duration::from_secs(10))
///     .connected_suspend(true)
///     .connect(("parent", "HV Socket Demo"))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ConnectOptions {
    endpoint: Option<Endpoint>,
    timeout: Duration,
    settings: Settings,
    plain: bool,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ConnectOptions {
    /// The defaults: the environment's endpoint, two seconds, no option set.
    pub fn new() -> Self {
        Self {
            endpoint: None,
            timeout: DEFAULT_CONNECT_TIMEOUT,
            settings: Settings::default(),
            plain: false,
        }
    }

    /// Which broker to ask.
    pub fn endpoint(mut self, endpoint: impl Into<Endpoint>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// How long connecting may take (`HVSOCKET_CONNECT_TIMEOUT`): more than nothing, at most 300
    /// seconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Whether the connection lives on while its partition is paused
    /// (`HVSOCKET_CONNECTED_SUSPEND`).
    pub fn connected_suspend(mut self, on: bool) -> Self {
        self.settings.connected_suspend = on;
        self
    }

    /// Whether to reach through a container to its host (`HVSOCKET_CONTAINER_PASSTHRU`).
    pub fn container_passthru(mut self, on: bool) -> Self {
        self.settings.container_passthru = on;
        self
    }

    /// Whether to reach the guest's VTL2 (`HVSOCKET_HIGH_VTL`).
    pub fn high_vtl(mut self, on: bool) -> Self {
        self.settings.high_vtl = on;
        self
    }

    /// Whether the connection is for a program that knows nothing of hvsock: see
    /// [`HvStream::spawn`].
    pub fn plain(mut self, on: bool) -> Self {
        self.plain = on;
        self
    }

    /// How many bytes to have room for in each direction, where the bytes go through shared
    /// memory: rounded up to a power of two between 4 KiB and 16 MiB, and the larger of what the
    /// two ends wish. Where nobody says otherwise it is 256 KiB, or 1 MiB if an end is of
    /// `hvsock::tokio`. Pages of it are memory only once they have been used. By `AF_VSOCK` it is
    /// the kernel's buffer for what this end receives.
    pub fn ring_size(mut self, bytes: u32) -> Self {
        self.settings.ring_size = bytes;
        self
    }

    /// Whether bytes may go through memory that is shared with the process at the other end, as
    /// they do unless either end says no. Without it they go through descriptors and the broker.
    pub fn shared_memory(mut self, on: bool) -> Self {
        self.settings.descriptor_only = !on;
        self
    }

    /// Connects.
    pub fn connect(&self, address: impl ToHvAddr) -> io::Result<HvStream> {
        let mut request = self.request(&address, false)?;
        match backend::obtain(&self.asked(), &mut request, self.timeout)? {
            Outcome::Connected(stream) => Ok(HvStream::new(Arc::new(stream))),
            _ => Err(odd()),
        }
    }

    /// What would become of [`ConnectOptions::connect`].
    pub fn explain(&self, address: impl ToHvAddr) -> io::Result<Explanation> {
        explain(&self.asked(), self.request(&address, true)?)
    }

    pub(crate) fn asked(&self) -> Endpoint {
        self.endpoint.clone().unwrap_or_default()
    }

    pub(crate) fn with_settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    pub(crate) fn request(&self, address: &dyn ToHvAddr, dry_run: bool) -> io::Result<Request> {
        Ok(Request {
            address: address.to_hv_addr()?,
            kind: RequestKind::Connect {
                timeout_ms: milliseconds(self.timeout)?,
            },
            settings: self.settings,
            flags: Flags {
                plain: self.plain,
                dry_run,
            },
        })
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn bound(&self) -> Duration {
        self.timeout
    }
}

/// How to listen.
///
/// ```no_run
/// use hvsock::HvListener;
///
/// # fn main() -> std::io::Result<()> {
/// let listener = HvListener::options().backlog(16).listen(("children", "HV Socket Demo"))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ListenOptions {
    endpoint: Option<Endpoint>,
    backlog: u32,
    settings: Settings,
    plain: bool,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ListenOptions {
    /// The defaults: the environment's endpoint, a backlog of 128, no option set.
    pub fn new() -> Self {
        Self {
            endpoint: None,
            backlog: DEFAULT_BACKLOG,
            settings: Settings::default(),
            plain: false,
        }
    }

    /// Which broker to ask.
    pub fn endpoint(mut self, endpoint: impl Into<Endpoint>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }

    /// How many connections may wait to be accepted; the broker may grant fewer.
    pub fn backlog(mut self, backlog: u32) -> Self {
        self.backlog = backlog;
        self
    }

    /// Whether accepted connections live on while their partition is paused
    /// (`HVSOCKET_CONNECTED_SUSPEND`).
    pub fn connected_suspend(mut self, on: bool) -> Self {
        self.settings.connected_suspend = on;
        self
    }

    /// Whether accepted connections are for programs that know nothing of hvsock: see
    /// [`HvStream::spawn`].
    pub fn plain(mut self, on: bool) -> Self {
        self.plain = on;
        self
    }

    /// How many bytes to have room for in each direction, where the bytes go through shared
    /// memory: rounded up to a power of two between 4 KiB and 16 MiB, and the larger of what the
    /// two ends wish. Where nobody says otherwise it is 256 KiB, or 1 MiB if an end is of
    /// `hvsock::tokio`. Pages of it are memory only once they have been used. By `AF_VSOCK` it is
    /// the kernel's buffer for what this end receives.
    pub fn ring_size(mut self, bytes: u32) -> Self {
        self.settings.ring_size = bytes;
        self
    }

    /// Whether bytes may go through memory that is shared with the process at the other end, as
    /// they do unless either end says no. Without it they go through descriptors and the broker.
    pub fn shared_memory(mut self, on: bool) -> Self {
        self.settings.descriptor_only = !on;
        self
    }

    /// Listens.
    pub fn listen(&self, address: impl ToHvAddr) -> io::Result<HvListener> {
        let mut request = self.request(&address, false)?;
        match backend::obtain(&self.asked(), &mut request, ANSWER_BOUND)? {
            Outcome::Listening(listener) => Ok(HvListener::new(Arc::new(listener))),
            _ => Err(odd()),
        }
    }

    /// What would become of [`ListenOptions::listen`].
    pub fn explain(&self, address: impl ToHvAddr) -> io::Result<Explanation> {
        explain(&self.asked(), self.request(&address, true)?)
    }

    pub(crate) fn asked(&self) -> Endpoint {
        self.endpoint.clone().unwrap_or_default()
    }

    pub(crate) fn with_settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    pub(crate) fn request(&self, address: &dyn ToHvAddr, dry_run: bool) -> io::Result<Request> {
        Ok(Request {
            address: address.to_hv_addr()?,
            kind: RequestKind::Listen {
                backlog: self.backlog,
            },
            settings: self.settings,
            flags: Flags {
                plain: self.plain,
                dry_run,
            },
        })
    }
}

fn explain(endpoint: &Endpoint, mut request: Request) -> io::Result<Explanation> {
    match backend::obtain(endpoint, &mut request, ANSWER_BOUND) {
        Ok(Outcome::Explained(explanation)) => Ok(explanation),
        Ok(_) => Err(odd()),
        // A name that nobody has is an answer too.
        Err(error) => match error::refusal_of(&error) {
            Some(refusal) => Ok(Explanation::refused(refusal.clone(), &error.to_string())),
            None => Err(error),
        },
    }
}

/// The request took an answer that is none to it; it has checks against that.
pub(crate) fn odd() -> io::Error {
    error::plain(
        io::ErrorKind::InvalidData,
        "the broker answered something else",
    )
}

/// A connect's time limit as the endpoint and the socket option have it, rounded up.
pub(crate) fn milliseconds(timeout: Duration) -> io::Result<u32> {
    let rounded = timeout.as_nanos().div_ceil(1_000_000);
    match u32::try_from(rounded) {
        Ok(0) => Err(error::invalid("a connect needs more time than none")),
        Ok(ms) if ms <= HVSOCKET_CONNECT_TIMEOUT_MAX => Ok(ms),
        _ => Err(error::invalid("a connect may take 300 seconds at the most")),
    }
}
