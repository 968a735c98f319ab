//! Options for connecting and listening.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hvsock_address::HVSOCKET_CONNECT_TIMEOUT_MAX;
use hvsock_endpoint::Flags;

use crate::backend::errors::unexpected_reply;
use crate::backend::{self, Description, Outcome, REPLY_TIMEOUT, Request, RequestKind, Settings};
use crate::{
    Check, Endpoint, Explanation, ExplanationStep, HvListener, HvStream, Refusal, ToHvAddr, error,
    fix_of,
};

/// The connect timeout if none is set; the same as on Windows.
pub(crate) const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The backlog if none is set; the same as in `std::net`.
const DEFAULT_BACKLOG: u32 = 128;

/// The most bytes of a description that are sent.
const MAX_ACTION: usize = 32;
const MAX_DETAIL: usize = 980;

/// The options that connecting and listening share.
#[derive(Clone, Debug, Default)]
struct Shared {
    endpoint: Option<Endpoint>,
    settings: Settings,
    raw_fd: bool,
    explains_refusal: bool,
    description: Option<Arc<Description>>,
}

impl Shared {
    fn request(
        &self,
        address: &dyn ToHvAddr,
        kind: RequestKind,
        dry_run: bool,
    ) -> io::Result<Request> {
        Ok(Request {
            address: address.to_hv_addr()?,
            kind,
            settings: self.settings,
            description: self.description.clone(),
            flags: Flags {
                raw_fd: self.raw_fd,
                dry_run,
                explain: self.explains_refusal,
            },
        })
    }

    /// Executes a request that is no dry run. Waits up to `timeout`.
    fn execute(&self, request: Request, timeout: Duration) -> io::Result<Outcome> {
        let endpoint = self.endpoint_or_default();
        let question = request.question();
        backend::execute(&endpoint, request, timeout).map_err(|error| match question {
            Some(question) if is_unexplained(&error) => {
                with_explanation(error, self.explain(question))
            }
            _ => error,
        })
    }

    fn explain(&self, request: Request) -> io::Result<Explanation> {
        explained(backend::execute(
            &self.endpoint_or_default(),
            request,
            REPLY_TIMEOUT,
        ))
    }

    fn endpoint_or_default(&self) -> Endpoint {
        self.endpoint.clone().unwrap_or_default()
    }
}

/// The methods of both builders for the options in [`Shared`].
macro_rules! shared_options {
    () => {
        /// Sets the endpoint of the broker. The default is [`Endpoint::from_env`].
        pub fn endpoint(mut self, endpoint: impl Into<Endpoint>) -> Self {
            self.shared.endpoint = Some(endpoint.into());
            self
        }

        /// Sets whether a connection survives while its partition is paused
        /// (`HVSOCKET_CONNECTED_SUSPEND`). Otherwise a pause resets it, which is the default. The
        /// connections that a listener accepts inherit its option.
        #[doc(alias = "HVSOCKET_CONNECTED_SUSPEND")]
        pub fn connected_suspend(mut self, on: bool) -> Self {
            self.shared.settings.connected_suspend = on;
            self
        }

        /// Sets whether the raw file descriptor of a connection is the connection, for a program that
        /// does not use this library: see [`HvStream::spawn`].
        ///
        /// The bytes then go through a socket that the broker relays, and the end of file is a clean
        /// end.
        #[doc(alias = "IntoRawFd")]
        #[doc(alias = "stdio")]
        pub fn raw_fd(mut self, on: bool) -> Self {
            self.shared.raw_fd = on;
            self
        }

        /// Sets the capacity in bytes of the ring in each direction, if the bytes go through shared
        /// memory.
        ///
        /// It is rounded up to a power of two between 4 KiB and 16 MiB; the larger request of the two
        /// ends applies. If neither asks, a ring has 2 MiB, of which a connection uses 256 KiB until it
        /// becomes a long stream between blocking ends; with a guest it has 1 MiB, or less if the guest
        /// has many connections. A `hvsock::tokio` stream asks for 1 MiB. The kernel allocates a page of
        /// the ring when it is first used. With `AF_VSOCK` this sets the kernel's receive buffer of this
        /// end.
        #[doc(alias = "SO_RCVBUF")]
        #[doc(alias = "SO_VM_SOCKETS_BUFFER_SIZE")]
        pub fn ring_size(mut self, bytes: u32) -> Self {
            self.shared.settings.ring_size = bytes;
            self
        }

        /// Sets whether the bytes may go through memory that is shared with the peer process. The
        /// default is true; if either end sets false, they go through Unix sockets and the broker.
        #[doc(alias = "zero-copy")]
        pub fn shared_memory(mut self, on: bool) -> Self {
            self.shared.settings.descriptor_only = !on;
            self
        }

        /// Sets whether each connection must have memory and descriptors of its own. The default is
        /// false: the connections of a pair of processes share an arena from the second one on. For
        /// tests and measurements of both.
        #[doc(hidden)]
        pub fn own_memory(mut self, on: bool) -> Self {
            self.shared.settings.own_memory = on;
            self
        }

        /// Sets whether the error of a refused request has an explanation:
        /// [`explanation_of`](crate::explanation_of) returns it. The default is false.
        ///
        /// The broker sends it with the refusal. A broker of an older version and the other
        /// back-ends are asked after the refusal, as by [`explain`](Self::explain), for up to 5
        /// more seconds.
        pub fn explain_refusal(mut self, on: bool) -> Self {
            self.shared.explains_refusal = on;
            self
        }

        #[cfg(feature = "tokio")]
        pub(crate) fn endpoint_or_default(&self) -> Endpoint {
            self.shared.endpoint_or_default()
        }

        pub(crate) fn with_settings(mut self, settings: Settings) -> Self {
            self.shared.settings = settings;
            self
        }
    };
}

/// Options for a connect: endpoint, timeout, ring size and the socket options of Hyper-V.
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
#[doc(alias = "setsockopt")]
#[derive(Clone, Debug)]
#[must_use]
pub struct ConnectOptions {
    shared: Shared,
    timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ConnectOptions {
    /// Creates the default options: the endpoint of the environment, a timeout of 2 seconds, no
    /// socket option set.
    pub fn new() -> Self {
        Self {
            shared: Shared::default(),
            timeout: DEFAULT_CONNECT_TIMEOUT,
        }
    }

    shared_options!();

    /// Sets how long the connect may take (`HVSOCKET_CONNECT_TIMEOUT`): more than zero and at most
    /// 300 seconds, rounded up to a millisecond. The default is 2 seconds.
    #[doc(alias = "HVSOCKET_CONNECT_TIMEOUT")]
    #[doc(alias = "connect_timeout")]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets whether to connect through a container to its host (`HVSOCKET_CONTAINER_PASSTHRU`).
    #[doc(alias = "HVSOCKET_CONTAINER_PASSTHRU")]
    pub fn container_passthru(mut self, on: bool) -> Self {
        self.shared.settings.container_passthru = on;
        self
    }

    /// Sets whether to connect to the VTL2 of the guest (`HVSOCKET_HIGH_VTL`).
    #[doc(alias = "HVSOCKET_HIGH_VTL")]
    pub fn high_vtl(mut self, on: bool) -> Self {
        self.shared.settings.high_vtl = on;
        self
    }

    /// Says what the connection is for: `action` in one word, such as `exec`, and `detail`, such as the
    /// command line. The broker's audit records it with the connection, or with its refusal, as a claim
    /// of this process; nothing is decided by it. Do not put secrets into it.
    ///
    /// The broker keeps 32 bytes of the action and about 1000 of the detail. It has no effect without a
    /// broker, with one of an older version, and on a socket that connects in non-blocking mode.
    #[doc(alias = "audit")]
    pub fn describe(mut self, action: impl Into<String>, detail: impl AsRef<str>) -> Self {
        self.shared.description = Some(Arc::new(Description {
            action: shortened(&action.into(), MAX_ACTION).to_owned(),
            detail: abridged(detail.as_ref()),
        }));
        self
    }

    /// Connects to a service. Blocks up to the [`timeout`](Self::timeout).
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: the address is invalid, or the timeout is zero or more than 300 seconds;
    /// - `NotFound`: no broker runs (`NoBroker`), or there is no registry to resolve a name
    ///   (`NoRegistry`);
    /// - `TimedOut`: the broker or the peer did not reply in time;
    /// - `InvalidData`: the broker violated the endpoint protocol;
    /// - a [`Refusal`](crate::Refusal), with [its kind](crate::Refusal::kind):
    ///   [`refusal_of`](crate::refusal_of) returns it.
    pub fn connect(&self, address: impl ToHvAddr) -> io::Result<HvStream> {
        let request = self.request(&address, false)?;
        match self.shared.execute(request, self.timeout)? {
            Outcome::Connected(stream) => Ok(HvStream::new(Arc::new(stream))),
            _ => Err(unexpected_reply()),
        }
    }

    /// Explains what [`ConnectOptions::connect`] would do, without connecting. Blocks up to 5
    /// seconds.
    ///
    /// # Errors
    ///
    /// As [`ConnectOptions::connect`], except that a refusal is returned as an [`Explanation`].
    /// `Unsupported` with `AF_VSOCK` if only the host has the answer.
    pub fn explain(&self, address: impl ToHvAddr) -> io::Result<Explanation> {
        self.shared.explain(self.request(&address, true)?)
    }

    pub(crate) fn request(&self, address: &dyn ToHvAddr, dry_run: bool) -> io::Result<Request> {
        let timeout_ms = milliseconds(self.timeout)?;
        self.shared
            .request(address, RequestKind::Connect { timeout_ms }, dry_run)
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn connect_timeout(&self) -> Duration {
        self.timeout
    }
}

/// The longest start of `text` of at most `max` bytes that ends at a character boundary.
fn shortened(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rfind(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

/// `text` within the limit of a description, with the number of bytes that are left out.
fn abridged(text: &str) -> String {
    if text.len() <= MAX_DETAIL {
        return text.to_owned();
    }
    let start = shortened(text, MAX_DETAIL);
    format!("{start}... ({} more bytes)", text.len() - start.len())
}

impl HvStream {
    /// Connects to a service. Blocks up to 2 seconds.
    ///
    /// # Errors
    ///
    /// As [`ConnectOptions::connect`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use hvsock::{HvStream, ServiceId, VmId};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let by_id = HvStream::connect((VmId::PARENT, ServiceId::from_port(2761)))?;
    /// let by_name = HvStream::connect(("web", "HV Socket Demo"))?;
    /// let by_url = HvStream::connect("hvsock://parent/HV%20Socket%20Demo")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn connect(address: impl ToHvAddr) -> io::Result<Self> {
        ConnectOptions::new().connect(address)
    }

    /// Connects to a service. Blocks up to `timeout`, which is more than zero and at most 300
    /// seconds.
    ///
    /// # Errors
    ///
    /// As [`ConnectOptions::connect`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # fn main() -> std::io::Result<()> {
    /// let stream = hvsock::HvStream::connect_timeout(("web", 2761), Duration::from_secs(30))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn connect_timeout(address: impl ToHvAddr, timeout: Duration) -> io::Result<Self> {
        ConnectOptions::new().timeout(timeout).connect(address)
    }

    /// Returns the options of a connect, to set others than the defaults.
    #[doc(alias = "builder")]
    pub fn options() -> ConnectOptions {
        ConnectOptions::new()
    }
}

/// Options for a listener: endpoint, backlog, ring size and the socket options of Hyper-V.
///
/// ```no_run
/// use hvsock::HvListener;
///
/// # fn main() -> std::io::Result<()> {
/// let listener = HvListener::options().backlog(16).listen(("children", "HV Socket Demo"))?;
/// # Ok(())
/// # }
/// ```
#[doc(alias = "setsockopt")]
#[derive(Clone, Debug)]
#[must_use]
pub struct ListenOptions {
    shared: Shared,
    backlog: u32,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ListenOptions {
    /// Creates the default options: the endpoint of the environment, a backlog of 128, no socket
    /// option set.
    pub fn new() -> Self {
        Self {
            shared: Shared::default(),
            backlog: DEFAULT_BACKLOG,
        }
    }

    shared_options!();

    /// Sets how many connections may wait to be accepted. The default is 128; the broker may grant
    /// fewer ([`HvListener::backlog`]).
    pub fn backlog(mut self, backlog: u32) -> Self {
        self.backlog = backlog;
        self
    }

    /// Listens for connections to a service. Blocks up to 5 seconds for the broker.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: the address is invalid;
    /// - `NotFound`: no broker runs (`NoBroker`), or there is no registry to resolve a name
    ///   (`NoRegistry`);
    /// - `TimedOut`: the broker did not reply within 5 seconds;
    /// - `InvalidData`: the broker violated the endpoint protocol;
    /// - a [`Refusal`](crate::Refusal), with [its kind](crate::Refusal::kind):
    ///   [`refusal_of`](crate::refusal_of) returns it. A listener that could never receive a
    ///   connection is refused.
    pub fn listen(&self, address: impl ToHvAddr) -> io::Result<HvListener> {
        let request = self.request(&address, false)?;
        match self.shared.execute(request, REPLY_TIMEOUT)? {
            Outcome::Listening(listener) => Ok(HvListener::new(Arc::new(listener))),
            _ => Err(unexpected_reply()),
        }
    }

    /// Explains what [`ListenOptions::listen`] would do, without listening. Blocks up to 5 seconds.
    ///
    /// # Errors
    ///
    /// As [`ListenOptions::listen`], except that a refusal is returned as an [`Explanation`].
    /// `Unsupported` with `AF_VSOCK` if only the host has the answer.
    pub fn explain(&self, address: impl ToHvAddr) -> io::Result<Explanation> {
        self.shared.explain(self.request(&address, true)?)
    }

    pub(crate) fn request(&self, address: &dyn ToHvAddr, dry_run: bool) -> io::Result<Request> {
        let backlog = self.backlog;
        self.shared
            .request(address, RequestKind::Listen { backlog }, dry_run)
    }
}

impl HvListener {
    /// Listens for connections to a service. Blocks up to 5 seconds for the broker.
    ///
    /// The partition of the address is the one to accept connections from: `any`, `children`,
    /// `parent`, `loopback`, or one partition by name or id.
    ///
    /// # Errors
    ///
    /// As [`ListenOptions::listen`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use hvsock::{HvListener, ServiceId, VmId};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// let by_id = HvListener::bind((VmId::WILDCARD, ServiceId::from_port(2761)))?;
    /// let by_name = HvListener::bind(("any", "HV Socket Demo"))?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "listen")]
    pub fn bind(address: impl ToHvAddr) -> io::Result<Self> {
        ListenOptions::new().listen(address)
    }

    /// Returns the options of a listener, to set others than the defaults.
    #[doc(alias = "builder")]
    pub fn options() -> ListenOptions {
        ListenOptions::new()
    }
}

/// The result of a dry run.
fn explained(outcome: io::Result<Outcome>) -> io::Result<Explanation> {
    match outcome {
        Ok(Outcome::Explained(explanation)) => Ok(explanation),
        Ok(_) => Err(unexpected_reply()),
        // A name that does not exist is a refusal, too, and so an explanation.
        Err(error) => match error::refusal_of(&error) {
            Some(refusal) => Ok(unresolved(refusal.clone(), &error)),
            None => Err(error),
        },
    }
}

/// Returns true if the error is a refusal that the back-end did not explain.
fn is_unexplained(error: &io::Error) -> bool {
    error::refusal_of(error).is_some() && error::explanation_of(error).is_none()
}

/// Adds the result of a later dry run to the error of a refused request.
fn with_explanation(error: io::Error, later: io::Result<Explanation>) -> io::Error {
    match (later, error::refusal_of(&error).cloned()) {
        (Ok(explanation), Some(refusal)) => {
            // The state may have changed, or the system may not reveal what refused it.
            let explanation = Explanation {
                verdict: Err(refusal),
                ..explanation
            };
            error::explained(error, explanation)
        }
        _ => error,
    }
}

/// Executes a request that is no dry run, in a task. Waits up to `timeout`.
#[cfg(feature = "tokio")]
pub(crate) async fn execute_in_task(
    endpoint: Endpoint,
    request: Request,
    timeout: Duration,
) -> io::Result<Outcome> {
    let question = request.question();
    let outcome = crate::os::tokio::execute(endpoint.clone(), request, timeout).await;
    match (outcome, question) {
        (Err(error), Some(question)) if is_unexplained(&error) => {
            let later = crate::os::tokio::execute(endpoint, question, REPLY_TIMEOUT).await;
            Err(with_explanation(error, explained(later)))
        }
        (outcome, _) => outcome,
    }
}

/// The explanation for a refusal that came before anything could be explained.
fn unresolved(refusal: Refusal, error: &io::Error) -> Explanation {
    let text = error.to_string();
    let question = "Does this address resolve?";
    let step = ExplanationStep::new(Check::Address, false, question, text.as_str());
    // The message may be the text of the refusal itself; it is shown once.
    let is_shown = text != refusal.to_string();
    let mut explanation = Explanation::refused(refusal, step);
    explanation.steps.retain(|_| is_shown);
    explanation.fix = fix_of(error);
    explanation
}

/// Converts a connect timeout to the milliseconds of the endpoint protocol and the socket option,
/// rounded up.
pub(crate) fn milliseconds(timeout: Duration) -> io::Result<u32> {
    let rounded = timeout.as_nanos().div_ceil(1_000_000);
    match u32::try_from(rounded) {
        Ok(0) => Err(error::invalid_input(
            "a connect timeout must be more than zero",
        )),
        Ok(ms) if ms <= HVSOCKET_CONNECT_TIMEOUT_MAX => Ok(ms),
        _ => Err(error::invalid_input(
            "a connect timeout must be at most 300 seconds",
        )),
    }
}
