//! A small client of the control API, blocking, for commands and tests.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body_util::{BodyExt, Full, Limited};
use hvsock_address::{PartitionRef, ServiceRef};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::model::{
    Connection, ErrorBody, Event, Explanation, GuestOrder, Imported, Listener, NewContainer,
    NewGuestOrder, NewService, NewVm, Partition, PartitionChange, PartitionState, Service,
    ServiceChange, Status,
};

/// The longest wait for one answer. Longer than the server's own limits, so that its word comes
/// first.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same for an import, which writes a file for each service.
const IMPORT_PATIENCE: Duration = Duration::from_secs(3600);
/// The most bytes of one answer.
const LONGEST: usize = 1 << 30;

/// Why a call of the control API came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody serves the socket.
    #[error("no broker runs here: nobody answers at {}", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The broker said no.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The broker's sentence.
        message: String,
    },
    /// The broker did not answer in time.
    #[error("the broker did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The talk broke off, or was not what this version expects.
    #[error("the broker's answer is not to be understood: {0}")]
    Protocol(String),
    /// The operating system said no.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, ClientError>;

/// A client of one broker. Each call is a connection of its own, so nothing is held between
/// calls.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// A client of the broker behind the socket `path`. Nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()?;
        Ok(Self {
            path: path.into(),
            runtime,
        })
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The broker at a glance.
    pub fn status(&self) -> Result<Status> {
        self.get("/v1/status")
    }

    /// Every registration; with `all` also those that are built in and those that ship with
    /// Windows.
    pub fn services(&self, all: bool) -> Result<Vec<Service>> {
        self.get(&format!("/v1/services?all={all}"))
    }

    /// One registration.
    pub fn service(&self, service: &ServiceRef) -> Result<Service> {
        self.get(&service_path(service))
    }

    /// Registers a service.
    pub fn register(&self, service: &NewService) -> Result<Service> {
        self.send(Method::POST, "/v1/services", service)
    }

    /// Enables or disables a service, everywhere or for one child partition.
    pub fn set_enabled(
        &self,
        service: &ServiceRef,
        enabled: bool,
        vm: Option<PartitionRef>,
    ) -> Result<Service> {
        let change = ServiceChange { enabled, vm };
        self.send(Method::PATCH, &service_path(service), &change)
    }

    /// Removes a registration.
    pub fn unregister(&self, service: &ServiceRef) -> Result<Service> {
        self.delete(&service_path(service))
    }

    /// All registrations, as JSON that [`import_json`](Self::import_json) takes.
    pub fn export_json(&self) -> Result<Vec<NewService>> {
        self.get("/v1/registry?format=json")
    }

    /// All registrations, as a `.reg` file that Windows takes.
    pub fn export_reg(&self) -> Result<Bytes> {
        self.call(Method::GET, "/v1/registry?format=reg", None)
    }

    /// Registers all of `services`, or none if one cannot be.
    pub fn import_json(&self, services: &[NewService]) -> Result<Imported> {
        let body = serde_json::to_vec(services).map_err(protocol)?;
        self.import("/v1/registry?format=json", body)
    }

    /// Registers all of a `.reg` file's services, or none if one cannot be.
    pub fn import_reg(&self, file: &[u8]) -> Result<Imported> {
        self.import("/v1/registry?format=reg", file.to_vec())
    }

    fn import(&self, path: &str, file: Vec<u8>) -> Result<Imported> {
        let answer = self.call_within(IMPORT_PATIENCE, Method::POST, path, Some(file))?;
        parse(&answer)
    }

    /// Every partition, parents before their children.
    pub fn partitions(&self) -> Result<Vec<Partition>> {
        self.get("/v1/partitions")
    }

    /// One partition.
    pub fn partition(&self, partition: &PartitionRef) -> Result<Partition> {
        self.get(&partition_path(partition))
    }

    /// Adds a container.
    pub fn add_container(&self, container: &NewContainer) -> Result<Partition> {
        self.send(Method::POST, "/v1/partitions", container)
    }

    /// Adds a VM.
    pub fn add_vm(&self, vm: &NewVm) -> Result<Partition> {
        self.send(Method::POST, "/v1/vms", vm)
    }

    /// Pauses or resumes a partition.
    pub fn set_state(&self, partition: &PartitionRef, state: PartitionState) -> Result<Partition> {
        let change = PartitionChange {
            state: Some(state),
            groups: None,
        };
        self.send(Method::PATCH, &partition_path(partition), &change)
    }

    /// Puts a partition into sibling groups, in place of those that it is in.
    pub fn set_groups(&self, partition: &PartitionRef, groups: Vec<String>) -> Result<Partition> {
        let change = PartitionChange {
            state: None,
            groups: Some(groups),
        };
        self.send(Method::PATCH, &partition_path(partition), &change)
    }

    /// Asks the agent in a partition's guest for something.
    pub fn order_guest(&self, partition: &PartitionRef, order: GuestOrder) -> Result<Partition> {
        let path = format!("{}/orders", partition_path(partition));
        self.send(Method::POST, &path, &NewGuestOrder { order })
    }

    /// Removes a partition.
    pub fn remove_partition(&self, partition: &PartitionRef) -> Result<Partition> {
        self.delete(&partition_path(partition))
    }

    /// Every listener.
    pub fn listeners(&self) -> Result<Vec<Listener>> {
        self.get("/v1/listeners")
    }

    /// Every connection.
    pub fn connections(&self) -> Result<Vec<Connection>> {
        self.get("/v1/connections")
    }

    /// One connection.
    pub fn connection(&self, id: u64) -> Result<Connection> {
        self.get(&format!("/v1/connections/{id}"))
    }

    /// Cuts a connection.
    pub fn cut(&self, id: u64) -> Result<Connection> {
        self.delete(&format!("/v1/connections/{id}"))
    }

    /// What a connect from the partition `from` (the broker's own if absent) to `to` would meet.
    pub fn explain_connect(
        &self,
        from: Option<&PartitionRef>,
        to: &PartitionRef,
        service: &ServiceRef,
    ) -> Result<Explanation> {
        self.explain(from, to, service, false)
    }

    /// What a listen in the partition `from` (the broker's own if absent) for connections from
    /// `to` would meet.
    pub fn explain_listen(
        &self,
        from: Option<&PartitionRef>,
        to: &PartitionRef,
        service: &ServiceRef,
    ) -> Result<Explanation> {
        self.explain(from, to, service, true)
    }

    fn explain(
        &self,
        from: Option<&PartitionRef>,
        to: &PartitionRef,
        service: &ServiceRef,
        listen: bool,
    ) -> Result<Explanation> {
        let from = from.map_or_else(String::new, |from| format!("&from={from}"));
        let service = escaped(&service.to_string());
        let path = format!("/v1/explain?to={to}&service={service}&listen={listen}{from}");
        self.get(&path)
    }

    /// The counters as Prometheus reads them.
    pub fn metrics(&self) -> Result<String> {
        let text = self.call(Method::GET, "/metrics", None)?;
        String::from_utf8(text.into()).map_err(|error| ClientError::Protocol(error.to_string()))
    }

    /// What happens from now on. The subscription stands when this returns.
    pub fn events(&self) -> Result<Events<'_>> {
        let answer = self.runtime.block_on(async {
            let request = request(Method::GET, "/v1/events", None)?;
            in_time(PATIENCE, exchange(&self.path, request)).await
        })?;
        Ok(Events {
            client: self,
            body: answer.into_body(),
            rest: Vec::new(),
        })
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        parse(&self.call(Method::GET, path, None)?)
    }

    fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        parse(&self.call(Method::DELETE, path, None)?)
    }

    fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &(impl Serialize + ?Sized),
    ) -> Result<T> {
        let body = serde_json::to_vec(body).map_err(protocol)?;
        parse(&self.call(method, path, Some(body))?)
    }

    fn call(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Bytes> {
        self.call_within(PATIENCE, method, path, body)
    }

    fn call_within(
        &self,
        patience: Duration,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Bytes> {
        let call = async {
            let answer = exchange(&self.path, request(method, path, body)?).await?;
            let whole = Limited::new(answer.into_body(), LONGEST).collect().await;
            let whole = whole.map_err(|error| ClientError::Protocol(error.to_string()))?;
            Ok(whole.to_bytes())
        };
        self.runtime.block_on(in_time(patience, call))
    }
}

/// Events as they happen.
#[derive(Debug)]
pub struct Events<'a> {
    client: &'a Client,
    body: Incoming,
    /// What came after the last whole line.
    rest: Vec<u8>,
}

impl Iterator for Events<'_> {
    type Item = Result<Event>;

    /// Waits for the next event; `None` when the broker has ended.
    fn next(&mut self) -> Option<Result<Event>> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(parse(&line));
            }
            if self.rest.len() > LONGEST {
                return Some(Err(ClientError::Protocol("an endless line".into())));
            }
            match self.client.runtime.block_on(self.body.frame())? {
                Ok(frame) => {
                    if let Ok(mut data) = frame.into_data() {
                        self.rest.extend_from_slice(&data);
                        data.advance(data.remaining());
                    }
                }
                // The broker went away in the middle of the body: the end, not a fault.
                Err(_) => return None,
            }
        }
    }
}

async fn in_time<T>(patience: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
    let done = tokio::time::timeout(patience, call).await;
    done.unwrap_or(Err(ClientError::TimedOut(patience)))
}

/// Sends one request over a connection of its own; an answer that is an error is one here.
async fn exchange(path: &Path, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
    let stream = UnixStream::connect(path).await.map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path }
            }
            _ => ClientError::Io { path, source },
        }
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(protocol)?;
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(protocol)?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let body = Limited::new(answer.into_body(), 64 * 1024).collect().await;
    let body = body.map_err(|error| ClientError::Protocol(error.to_string()))?;
    let message = match serde_json::from_slice::<ErrorBody>(&body.to_bytes()) {
        Ok(body) => body.error,
        Err(_) => format!("the broker answered {status}"),
    };
    Err(ClientError::Refused {
        status: StatusCode::as_u16(&status),
        message,
    })
}

fn request(method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Request<Full<Bytes>>> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "hvsock");
    if body.is_some() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    let body = Full::new(Bytes::from(body.unwrap_or_default()));
    request
        .body(body)
        .map_err(|error| ClientError::Protocol(error.to_string()))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(protocol)
}

fn protocol(error: impl std::error::Error) -> ClientError {
    ClientError::Protocol(error.to_string())
}

fn service_path(service: &ServiceRef) -> String {
    format!("/v1/services/{}", escaped(&service.to_string()))
}

fn partition_path(partition: &PartitionRef) -> String {
    format!("/v1/partitions/{partition}")
}

/// Percent-encodes all but the unreserved characters of RFC 3986 §2.3.
fn escaped(text: &str) -> String {
    use std::fmt::Write;

    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}
