//! A small blocking client of the control API, for commands and tests.

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
    Connection, ErrorBody, Event, ExplanationReport, GuestCommand, Imported, Listener,
    NewContainer, NewGuestCommand, NewService, NewVm, Partition, PartitionChange, PartitionState,
    Service, ServiceChange, Status,
};

/// The timeout for one response. Longer than the server's own timeouts, so that the server's error
/// arrives first.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The same for an import, which writes a file for each service.
const IMPORT_TIMEOUT: Duration = Duration::from_secs(3600);
/// The most bytes of one response.
const MAX_RESPONSE: usize = 1 << 30;

/// Why a call of the control API failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No server listens on the socket.
    #[error("no broker runs here: no server listens at {}", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The broker responded with an error.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The broker's error message.
        message: String,
    },
    /// The broker did not respond in time.
    #[error("the broker did not respond within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The connection broke, or the response is not what this version expects.
    #[error("invalid response from the broker: {0}")]
    Protocol(String),
    /// A system call failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, ClientError>;

/// A client of one broker. Each call opens its own connection; none is kept open between calls.
///
/// All calls block, for at most 60 seconds (imports: one hour).
///
/// Besides the errors that it documents, every call fails with [`NotRunning`](ClientError::NotRunning)
/// without a broker, [`Refused`](ClientError::Refused) with status 403 if the caller may not change
/// the broker's state, [`TimedOut`](ClientError::TimedOut), [`Protocol`](ClientError::Protocol) or
/// [`Io`](ClientError::Io).
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    runtime: Runtime,
}

impl Client {
    /// Makes a client of the broker at the socket `path`. Does not connect yet.
    ///
    /// # Errors
    /// If the client's runtime cannot be made, for lack of descriptors.
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

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The broker's status.
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    pub fn status(&self) -> Result<Status> {
        self.get("/v1/status")
    }

    /// Lists registrations. With `all`, also built-in services and those that ship with Windows.
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    pub fn services(&self, all: bool) -> Result<Vec<Service>> {
        self.get(&format!("/v1/services?all={all}"))
    }

    /// One registration.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if it is not registered.
    pub fn service(&self, service: &ServiceRef) -> Result<Service> {
        self.get(&service_path(service))
    }

    /// Registers a service.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 400 if the registration is invalid, 409 if the GUID, name or
    /// port is taken, 507 if the broker has too many registrations.
    pub fn register(&self, service: &NewService) -> Result<Service> {
        self.send(Method::POST, "/v1/services", service)
    }

    /// Enables or disables a service, everywhere or for one child partition.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if the service or partition does not exist, 400 if the
    /// service is a lease.
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
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if the service is not registered.
    pub fn unregister(&self, service: &ServiceRef) -> Result<Service> {
        self.delete(&service_path(service))
    }

    /// Exports all registrations for [`import_json`](Self::import_json).
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    pub fn export_json(&self) -> Result<Vec<NewService>> {
        self.get("/v1/registry?format=json")
    }

    /// Exports all registrations as a `.reg` file for Windows.
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    pub fn export_reg(&self) -> Result<Bytes> {
        self.call(Method::GET, "/v1/registry?format=reg", None)
    }

    /// Registers all of `services`, or none if one is refused.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 400 if a registration is invalid, 409 if a service clashes with
    /// another.
    pub fn import_json(&self, services: &[NewService]) -> Result<Imported> {
        let body = serde_json::to_vec(services).map_err(protocol)?;
        self.import("/v1/registry?format=json", body)
    }

    /// Removes the services that a `.reg` file deletes, then registers all of its services, or none
    /// if one is refused. The removals are not undone then.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 400 if the file is invalid, 409 if a service clashes with
    /// another.
    pub fn import_reg(&self, file: &[u8]) -> Result<Imported> {
        self.import("/v1/registry?format=reg", file.to_vec())
    }

    fn import(&self, path: &str, file: Vec<u8>) -> Result<Imported> {
        let response = self.call_within(IMPORT_TIMEOUT, Method::POST, path, Some(file))?;
        parse(&response)
    }

    /// Lists partitions, parents before their children.
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    pub fn partitions(&self) -> Result<Vec<Partition>> {
        self.get("/v1/partitions")
    }

    /// One partition.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if there is none.
    pub fn partition(&self, partition: &PartitionRef) -> Result<Partition> {
        self.get(&partition_path(partition))
    }

    /// Adds a container.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 409 if the name or id is taken.
    pub fn add_container(&self, container: &NewContainer) -> Result<Partition> {
        self.send(Method::POST, "/v1/partitions", container)
    }

    /// Adds a VM.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 409 if the name, id or CID is taken.
    pub fn add_vm(&self, vm: &NewVm) -> Result<Partition> {
        self.send(Method::POST, "/v1/vms", vm)
    }

    /// Pauses or resumes a partition.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 400 if the partition cannot change to this state, 404 if it
    /// does not exist.
    #[doc(alias = "pause")]
    #[doc(alias = "resume")]
    pub fn set_state(&self, partition: &PartitionRef, state: PartitionState) -> Result<Partition> {
        let change = PartitionChange {
            state: Some(state),
            groups: None,
        };
        self.send(Method::PATCH, &partition_path(partition), &change)
    }

    /// Replaces a partition's sibling groups.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if the partition does not exist, 400 if it is the broker's
    /// own.
    #[doc(alias = "sibling")]
    pub fn set_groups(&self, partition: &PartitionRef, groups: Vec<String>) -> Result<Partition> {
        let change = PartitionChange {
            state: None,
            groups: Some(groups),
        };
        self.send(Method::PATCH, &partition_path(partition), &change)
    }

    /// Sends a command to the agent in a partition's guest. Does not wait for its effect.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 400 if no agent is connected, 404 if the partition does not
    /// exist.
    pub fn send_guest_command(
        &self,
        partition: &PartitionRef,
        command: GuestCommand,
    ) -> Result<Partition> {
        let path = format!("{}/commands", partition_path(partition));
        self.send(Method::POST, &path, &NewGuestCommand { command })
    }

    /// Removes a partition.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if there is none.
    pub fn remove_partition(&self, partition: &PartitionRef) -> Result<Partition> {
        self.delete(&partition_path(partition))
    }

    /// Lists listeners.
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    pub fn listeners(&self) -> Result<Vec<Listener>> {
        self.get("/v1/listeners")
    }

    /// Lists connections.
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    pub fn connections(&self) -> Result<Vec<Connection>> {
        self.get("/v1/connections")
    }

    /// One connection.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if there is none.
    pub fn connection(&self, id: u64) -> Result<Connection> {
        self.get(&format!("/v1/connections/{id}"))
    }

    /// Closes a connection. Both ends see a reset.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if there is none.
    pub fn close_connection(&self, id: u64) -> Result<Connection> {
        self.delete(&format!("/v1/connections/{id}"))
    }

    /// Explains what a connect from the partition `from` (`None`: the broker's own) to `to` would
    /// result in.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if a partition or friendly name is unknown.
    pub fn explain_connect(
        &self,
        from: Option<&PartitionRef>,
        to: &PartitionRef,
        service: &ServiceRef,
    ) -> Result<ExplanationReport> {
        self.explain(from, to, service, false)
    }

    /// Explains what a listen in the partition `from` (`None`: the broker's own) for connections
    /// from `to` would result in.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if a partition or friendly name is unknown.
    pub fn explain_listen(
        &self,
        from: Option<&PartitionRef>,
        to: &PartitionRef,
        service: &ServiceRef,
    ) -> Result<ExplanationReport> {
        self.explain(from, to, service, true)
    }

    fn explain(
        &self,
        from: Option<&PartitionRef>,
        to: &PartitionRef,
        service: &ServiceRef,
        listen: bool,
    ) -> Result<ExplanationReport> {
        let from = from.map_or_else(String::new, |from| format!("&from={from}"));
        let service = escaped(&service.to_string());
        let path = format!("/v1/explain?to={to}&service={service}&listen={listen}{from}");
        self.get(&path)
    }

    /// The counters in the OpenMetrics text format.
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    #[doc(alias = "prometheus")]
    pub fn metrics(&self) -> Result<String> {
        let text = self.call(Method::GET, "/metrics", None)?;
        String::from_utf8(text.into()).map_err(|error| ClientError::Protocol(error.to_string()))
    }

    /// Subscribes to events. The subscription is active when this returns.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 503 if the broker has too many followers of events.
    #[doc(alias = "subscribe")]
    pub fn events(&self) -> Result<Events<'_>> {
        let response = self.runtime.block_on(async {
            let request = request(Method::GET, "/v1/events", None)?;
            with_timeout(TIMEOUT, exchange(&self.path, request)).await
        })?;
        Ok(Events {
            client: self,
            body: response.into_body(),
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
        self.call_within(TIMEOUT, method, path, body)
    }

    fn call_within(
        &self,
        timeout: Duration,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Bytes> {
        let call = async {
            let response = exchange(&self.path, request(method, path, body)?).await?;
            let whole = Limited::new(response.into_body(), MAX_RESPONSE)
                .collect()
                .await;
            let whole = whole.map_err(|error| ClientError::Protocol(error.to_string()))?;
            Ok(whole.to_bytes())
        };
        self.runtime.block_on(with_timeout(timeout, call))
    }
}

/// An iterator over events as they happen.
#[derive(Debug)]
pub struct Events<'a> {
    client: &'a Client,
    body: Incoming,
    /// Bytes received after the last complete line.
    rest: Vec<u8>,
}

impl Iterator for Events<'_> {
    type Item = Result<Event>;

    /// Blocks until the next event. `None` when the broker has ended.
    fn next(&mut self) -> Option<Result<Event>> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(parse(&line));
            }
            if self.rest.len() > MAX_RESPONSE {
                return Some(Err(ClientError::Protocol("an event without end".into())));
            }
            match self.client.runtime.block_on(self.body.frame())? {
                Ok(frame) => {
                    if let Ok(mut data) = frame.into_data() {
                        self.rest.extend_from_slice(&data);
                        data.advance(data.remaining());
                    }
                }
                // The broker has ended in the middle of the body, which is no error here.
                Err(_) => return None,
            }
        }
    }
}

async fn with_timeout<T>(timeout: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
    let done = tokio::time::timeout(timeout, call).await;
    done.unwrap_or(Err(ClientError::TimedOut(timeout)))
}

/// Sends one request over a new connection. Turns an error response into an error.
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
    let response = sender.send_request(request).await.map_err(protocol)?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = Limited::new(response.into_body(), 64 * 1024)
        .collect()
        .await;
    let body = body.map_err(|error| ClientError::Protocol(error.to_string()))?;
    let message = match serde_json::from_slice::<ErrorBody>(&body.to_bytes()) {
        Ok(body) => body.error,
        Err(_) => format!("the broker responded {status}"),
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

/// Percent-encodes all but the unreserved characters (RFC 3986 §2.3).
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
