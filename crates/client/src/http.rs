//! HTTP/1.1 over the broker's control socket: one request for each connection, with deadlines.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hvsock_control::ErrorBody;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::attach::Attaching;
use crate::error::{ClientError, Result};

/// The timeout for one response. Longer than the server's own timeouts, so that the server's error
/// arrives first.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The same for an import, which writes a file for each service.
const IMPORT_TIMEOUT: Duration = Duration::from_secs(3600);
/// The most bytes of one response, and of one event.
pub(crate) const MAX_RESPONSE: usize = 1 << 30;
/// The most bytes of an error response.
const MAX_ERROR: usize = 64 * 1024;

/// One request.
#[derive(Debug)]
pub(crate) struct Call {
    method: Method,
    /// The escaped path and query.
    uri: String,
    /// The content type and the bytes.
    body: Option<(&'static str, Vec<u8>)>,
    timeout: Duration,
    /// Sent with the first byte.
    descriptor: Option<OwnedFd>,
}

impl Call {
    /// A request for the path of `segments`, which are escaped here.
    pub fn new(method: Method, segments: &[&str]) -> Self {
        let mut uri = String::new();
        for segment in segments {
            uri.push('/');
            escape_into(&mut uri, segment);
        }
        Self {
            method,
            uri,
            body: None,
            timeout: TIMEOUT,
            descriptor: None,
        }
    }

    /// Adds a query parameter, which is escaped here.
    pub fn query(mut self, name: &str, value: &str) -> Self {
        self.uri
            .push(if self.uri.contains('?') { '&' } else { '?' });
        self.uri.push_str(name);
        self.uri.push('=');
        escape_into(&mut self.uri, value);
        self
    }

    pub fn body(mut self, content_type: &'static str, body: Vec<u8>) -> Self {
        self.body = Some((content_type, body));
        self
    }

    /// Adds a descriptor.
    pub fn descriptor(mut self, descriptor: OwnedFd) -> Self {
        self.descriptor = Some(descriptor);
        self
    }

    /// Gives the call the time of an import.
    pub fn with_import_timeout(mut self) -> Self {
        self.timeout = IMPORT_TIMEOUT;
        self
    }

    fn request(self) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(self.method)
            .uri(self.uri)
            .header(HOST, "hvsock");
        let mut bytes = Vec::new();
        if let Some((content_type, body)) = self.body {
            request = request.header(CONTENT_TYPE, content_type);
            bytes = body;
        }
        let body = Full::new(Bytes::from(bytes));
        request.body(body).map_err(ClientError::protocol)
    }
}

/// The broker's socket, and the runtime on which calls wait.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    runtime: Runtime,
    /// When every call ends, if that is before its own limit.
    deadline: Option<Instant>,
}

impl Socket {
    pub fn new(path: PathBuf) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        Ok(Self {
            path,
            runtime,
            deadline: None,
        })
    }

    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    fn timeout(&self, call: &Call) -> Duration {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        call.timeout.min(self.deadline.map_or(Duration::MAX, left))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the call and returns the body of the response.
    pub fn send(&self, call: Call) -> Result<Bytes> {
        let timeout = self.timeout(&call);
        let exchange = async {
            let response = exchange(&self.path, call).await?;
            let body = Limited::new(response.into_body(), MAX_RESPONSE).collect();
            Ok(body.await.map_err(ClientError::protocol)?.to_bytes())
        };
        self.runtime.block_on(within(timeout, exchange))
    }

    /// Makes the call and returns the body, of which nothing is read yet.
    pub fn open(&self, call: Call) -> Result<Incoming> {
        let timeout = self.timeout(&call);
        let exchange = exchange(&self.path, call);
        let response = self.runtime.block_on(within(timeout, exchange))?;
        Ok(response.into_body())
    }

    /// Waits for the next bytes of `body`, without a time limit. `None` at its end, also if it
    /// breaks off.
    pub fn next_bytes(&self, body: &mut Incoming) -> Option<Bytes> {
        loop {
            let frame = self.runtime.block_on(body.frame())?.ok()?;
            if let Ok(bytes) = frame.into_data() {
                return Some(bytes);
            }
        }
    }
}

async fn within<T>(timeout: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
    // Made inside the runtime, whose timer it uses.
    let done = tokio::time::timeout(timeout, call).await;
    done.unwrap_or(Err(ClientError::TimedOut(timeout)))
}

/// Sends one request over a new connection. Turns an error response into an error.
async fn exchange(path: &Path, mut call: Call) -> Result<Response<Incoming>> {
    let descriptor = call.descriptor.take();
    let request = call.request()?;
    let stream = UnixStream::connect(path).await.map_err(|error| {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path }
            }
            _ => ClientError::Io { path, error },
        }
    })?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(Attaching::new(stream, descriptor)))
            .await
            .map_err(ClientError::protocol)?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await;
    let response = response.map_err(ClientError::protocol)?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = Limited::new(response.into_body(), MAX_ERROR).collect();
    let body = body.await.map_err(ClientError::protocol)?.to_bytes();
    let (message, fix) = match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(body) => (body.error, body.fix),
        Err(_) => (format!("the broker responded {status}"), None),
    };
    Err(ClientError::Refused {
        status: status.as_u16(),
        message,
        fix,
    })
}

pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(ClientError::protocol)
}

/// Percent-encodes all but the unreserved characters (RFC 3986 §2.3).
fn escape_into(uri: &mut String, text: &str) {
    use std::fmt::Write;

    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            let _ = write!(uri, "%{byte:02X}");
        }
    }
}
