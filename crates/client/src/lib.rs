//! A client of hvsock's control API, with which operators and their tools inspect and change a
//! running broker: services, partitions, connections, explanations and events.
//!
//! The API is HTTP/1.1 with JSON over a Unix socket, in the broker's run folder:
//! `/run/hvsock/control` of the machine's broker, `$XDG_RUNTIME_DIR/hvsock/control` of a user's
//! own. Programs that connect and listen use the crate `hvsock` instead.
//!
//! ```no_run
//! use hvsock_client::Client;
//!
//! let client = Client::new("/run/hvsock/control")?;
//! for service in client.services(false)? {
//!     println!("{} {}", service.id, service.name);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A test compares the calls with the broker's OpenAPI document (`docs/openapi.json`): each
//! operation has a call, each call is an operation, and the types match the schemas.

#![cfg(target_os = "linux")]
#![forbid(unsafe_code)]

mod attach;
mod error;
mod events;
mod http;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use hvsock_address::{PartitionRef, ServiceRef};
use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use error::ClientError;
pub use events::Events;
/// The values of the control API, which a [`Client`]'s calls take and return.
pub use hvsock_control as model;

use error::Result;
use http::{Call, Socket, parse};
use model::{
    AccessChange, AccessChanged, AuditFilter, AuditRecord, BrokerThread, Connection,
    ConnectionResult, ExplanationReport, GuestCommand, Imported, Listener, NewBinding,
    NewContainer, NewGuestCommand, NewService, NewUpgrade, NewVm, Partition, PartitionChange,
    PartitionState, Service, ServiceChange, Status, TransportChange, Upgrade,
};

/// The content types of requests.
const JSON: &str = "application/json";
const REG: &str = "text/plain; charset=utf-16le";
/// The path of exports and imports.
const REGISTRY: [&str; 2] = ["v1", "registry"];

/// A client of one broker. Each call opens its own connection; none is kept open between calls.
///
/// All calls block, for at most 60 seconds (imports: one hour). An asynchronous program makes,
/// uses and drops a client on a thread where it may block, as `tokio::task::spawn_blocking`
/// provides one.
///
/// Besides the errors that it documents, every call fails with [`NotRunning`](ClientError::NotRunning)
/// without a broker, [`Refused`](ClientError::Refused) with status 403 if the caller may not change
/// the broker's state, [`TimedOut`](ClientError::TimedOut), [`Protocol`](ClientError::Protocol) or
/// [`Io`](ClientError::Io).
///
/// # Panics
/// Every call panics on a thread that runs asynchronous tasks.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
}

impl Client {
    /// Makes a client of the broker at the socket `path`. Does not connect yet.
    ///
    /// # Errors
    /// If the client's runtime cannot be made, for lack of descriptors.
    pub fn new(path: impl Into<PathBuf>) -> io::Result<Self> {
        let socket = Socket::new(path.into())?;
        Ok(Self { socket })
    }

    /// Has every call fail at `deadline`, if it takes longer.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Instant) -> Self {
        self.socket.set_deadline(deadline);
        self
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        self.socket.path()
    }

    /// The broker's status.
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    pub fn status(&self) -> Result<Status> {
        self.call(get(&["v1", "status"]))
    }

    /// Lists the broker's threads. The broker answers also while one of them hangs.
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    pub fn threads(&self) -> Result<Vec<BrokerThread>> {
        self.call(get(&["v1", "threads"]))
    }

    /// Lists registrations. With `all`, also built-in services and those that ship with Windows.
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    pub fn services(&self, all: bool) -> Result<Vec<Service>> {
        self.call(get(&["v1", "services"]).query("all", &all.to_string()))
    }

    /// One registration.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if it is not registered.
    pub fn service(&self, service: &ServiceRef) -> Result<Service> {
        self.call(of_service(Method::GET, service))
    }

    /// Registers a service.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 400 if the registration is invalid, 409 if the GUID, name or
    /// port is taken, 507 if the broker has too many registrations.
    pub fn register(&self, service: &NewService) -> Result<Service> {
        self.change(post(&["v1", "services"]), service)
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
        let change = ServiceChange {
            enabled,
            vm,
            ..ServiceChange::default()
        };
        self.change_service(service, &change)
    }

    /// Enables or disables a service, also as an exception for one child partition, or for those that
    /// are exceptions.
    ///
    /// # Errors
    /// As [`set_enabled`](Self::set_enabled), and 409 if the service is disabled for all partitions
    /// and the child partition is to follow that.
    pub fn change_service(&self, service: &ServiceRef, change: &ServiceChange) -> Result<Service> {
        self.change(of_service(Method::PATCH, service), change)
    }

    /// Allows or denies users, groups and partitions to connect to a service, or to listen for it.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if the service or partition does not exist, 400 if there is
    /// no such user or group, if the service is a lease, or if the rule cannot exclude an entry because
    /// it allows everyone.
    pub fn change_access(
        &self,
        service: &ServiceRef,
        change: &AccessChange,
    ) -> Result<AccessChanged> {
        self.change(access_of(Method::POST, service), change)
    }

    /// Removes the access rules of a service, so that the built-in rules or the defaults apply again:
    /// of one child partition, or of the service and all its child partitions.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if the service or partition does not exist, 400 if the service
    /// is a lease.
    pub fn reset_access(&self, service: &ServiceRef, vm: Option<PartitionRef>) -> Result<Service> {
        let mut request = access_of(Method::DELETE, service);
        if let Some(vm) = vm {
            request = request.query("vm", &vm.to_string());
        }
        self.call(request)
    }

    /// Sets how the bytes of a service's new connections travel, for all partitions or for one child
    /// partition.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if the service or partition does not exist, 400 if the service
    /// is a lease.
    pub fn set_transport(&self, service: &ServiceRef, change: &TransportChange) -> Result<Service> {
        let path = ["v1", "services", &service.to_string(), "transport"];
        self.change(Call::new(Method::PUT, &path), change)
    }

    /// Removes a registration.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if the service is not registered.
    pub fn unregister(&self, service: &ServiceRef) -> Result<Service> {
        self.call(of_service(Method::DELETE, service))
    }

    /// Exports all registrations for [`import_json`](Self::import_json).
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    pub fn export_json(&self) -> Result<Vec<NewService>> {
        self.call(get(&REGISTRY).query("format", "json"))
    }

    /// Exports all registrations as a `.reg` file for Windows.
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    pub fn export_reg(&self) -> Result<Bytes> {
        self.socket.send(get(&REGISTRY).query("format", "reg"))
    }

    /// Registers all of `services`, or none if one is refused.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 400 if a registration is invalid, 409 if a service clashes with
    /// another.
    pub fn import_json(&self, services: &[NewService]) -> Result<Imported> {
        let call = post(&REGISTRY).query("format", "json");
        self.change(call.with_import_timeout(), services)
    }

    /// Removes the services that a `.reg` file deletes, then registers all of its services, or none
    /// if one is refused. The removals are not undone then.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 400 if the file is invalid, 409 if a service clashes with
    /// another.
    pub fn import_reg(&self, file: &[u8]) -> Result<Imported> {
        let call = post(&REGISTRY)
            .query("format", "reg")
            .body(REG, file.to_vec());
        self.call(call.with_import_timeout())
    }

    /// Lists partitions, parents before their children.
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    pub fn partitions(&self) -> Result<Vec<Partition>> {
        self.call(get(&["v1", "partitions"]))
    }

    /// One partition.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if there is none.
    pub fn partition(&self, partition: &PartitionRef) -> Result<Partition> {
        self.call(of_partition(Method::GET, partition))
    }

    /// Adds a container.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 409 if the name or id is taken.
    pub fn add_container(&self, container: &NewContainer) -> Result<Partition> {
        self.change(post(&["v1", "partitions"]), container)
    }

    /// Adds a VM.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 409 if the name, id or CID is taken.
    pub fn add_vm(&self, vm: &NewVm) -> Result<Partition> {
        self.change(post(&["v1", "vms"]), vm)
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
        self.change(of_partition(Method::PATCH, partition), &change)
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
        self.change(of_partition(Method::PATCH, partition), &change)
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
        let name = partition.to_string();
        let call = post(&["v1", "partitions", &name, "commands"]);
        self.change(call, &NewGuestCommand { command })
    }

    /// Binds a container of a runtime to a container partition, until its first process ends. `process` is a
    /// pidfd of that process; without it, `new.pid` is its number as the broker numbers it.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if the partition does not exist, 400 if the process has ended, 409
    /// if another container that runs is bound to the partition, or this one to another.
    pub fn bind_container(
        &self,
        partition: &PartitionRef,
        new: &NewBinding,
        process: Option<OwnedFd>,
    ) -> Result<Partition> {
        let mut call = container_of(Method::POST, partition);
        if let Some(process) = process {
            call = call.descriptor(process);
        }
        self.change(call, new)
    }

    /// Records that a runtime has removed a container. Does nothing if another container is bound to the
    /// partition, or none.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if the partition does not exist.
    pub fn release_container(&self, partition: &PartitionRef, oci_id: &str) -> Result<Partition> {
        self.call(container_of(Method::DELETE, partition).query("oci_id", oci_id))
    }

    /// Removes a partition.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if there is none.
    pub fn remove_partition(&self, partition: &PartitionRef) -> Result<Partition> {
        self.call(of_partition(Method::DELETE, partition))
    }

    /// Lists listeners.
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    pub fn listeners(&self) -> Result<Vec<Listener>> {
        self.call(get(&["v1", "listeners"]))
    }

    /// Lists connections.
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    pub fn connections(&self) -> Result<Vec<Connection>> {
        self.call(get(&["v1", "connections"]))
    }

    /// One connection.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if there is none.
    pub fn connection(&self, id: u64) -> Result<Connection> {
        self.call(of_connection(Method::GET, id))
    }

    /// Closes a connection. Both ends see a reset.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if there is none.
    pub fn close_connection(&self, id: u64) -> Result<Connection> {
        self.call(of_connection(Method::DELETE, id))
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
        let mut call = get(&["v1", "explain"])
            .query("to", &to.to_string())
            .query("service", &service.to_string())
            .query("listen", &listen.to_string());
        if let Some(from) = from {
            call = call.query("from", &from.to_string());
        }
        self.call(call)
    }

    /// The counters in the OpenMetrics text format.
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    #[doc(alias = "prometheus")]
    pub fn metrics(&self) -> Result<String> {
        let text = self.socket.send(get(&["metrics"]))?;
        String::from_utf8(text.into()).map_err(ClientError::protocol)
    }

    /// Subscribes to events. The subscription is active when this returns.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 503 if the broker has too many followers of events.
    #[doc(alias = "subscribe")]
    pub fn events(&self) -> Result<Events<'_>> {
        Events::open(&self.socket, false)
    }

    /// Subscribes to events and to records of the audit: all as root or the broker's user, otherwise
    /// those about the calling user. The subscription is active when this returns.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 503 if the broker has too many followers of events.
    pub fn events_with_audit(&self) -> Result<Events<'_>> {
        Events::open(&self.socket, true)
    }

    /// Lists the records of the audit that `filter` selects, oldest first: all as root or the broker's
    /// user, otherwise those about the calling user.
    ///
    /// # Errors
    /// A [`ClientError`] if the call fails.
    #[doc(alias = "log")]
    pub fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRecord>> {
        let mut call = get(&["v1", "audit"]);
        let AuditFilter {
            since_ms,
            after,
            user,
            partition,
            category,
            service,
            action,
            failed,
            limit,
        } = filter;
        let text = |number: &u64| number.to_string();
        let conditions = [
            ("since_ms", since_ms.as_ref().map(text)),
            ("after", after.as_ref().map(text)),
            ("user", user.clone()),
            ("partition", partition.clone()),
            ("category", category.map(|one| one.label().to_owned())),
            ("service", service.clone()),
            ("action", action.clone()),
            ("failed", failed.then(|| "true".to_owned())),
            ("limit", limit.as_ref().map(usize::to_string)),
        ];
        for (name, value) in conditions {
            if let Some(value) = value {
                call = call.query(name, &value);
            }
        }
        self.call(call)
    }

    /// States how a connection of this process ends or ended, such as an exit status, for the audit.
    /// Returns what is kept of it.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 404 if this process has and had no such connection.
    pub fn state_result(&self, connection: u64, result: &str) -> Result<ConnectionResult> {
        let path = ["v1", "connections", &connection.to_string(), "result"];
        let result = ConnectionResult {
            result: result.to_owned(),
        };
        self.change(post(&path), &result)
    }

    /// Starts the broker's program, as it is on disk now, and hands the running broker over to it, with all that it
    /// has. Waits for the end of that.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with 500 if the running broker goes on instead, with the reason.
    pub fn upgrade(&self, upgrade: &NewUpgrade) -> Result<Upgrade> {
        self.change(post(&["v1", "upgrade"]).with_import_timeout(), upgrade)
    }

    fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T> {
        parse(&self.socket.send(call)?)
    }

    fn change<T: DeserializeOwned>(
        &self,
        call: Call,
        body: &(impl Serialize + ?Sized),
    ) -> Result<T> {
        let body = serde_json::to_vec(body).map_err(ClientError::protocol)?;
        self.call(call.body(JSON, body))
    }
}

fn get(segments: &[&str]) -> Call {
    Call::new(Method::GET, segments)
}

fn post(segments: &[&str]) -> Call {
    Call::new(Method::POST, segments)
}

fn of_service(method: Method, service: &ServiceRef) -> Call {
    Call::new(method, &["v1", "services", &service.to_string()])
}

fn access_of(method: Method, service: &ServiceRef) -> Call {
    Call::new(method, &["v1", "services", &service.to_string(), "access"])
}

fn of_partition(method: Method, partition: &PartitionRef) -> Call {
    Call::new(method, &["v1", "partitions", &partition.to_string()])
}

fn container_of(method: Method, partition: &PartitionRef) -> Call {
    let name = partition.to_string();
    Call::new(method, &["v1", "partitions", &name, "container"])
}

fn of_connection(method: Method, id: u64) -> Call {
    Call::new(method, &["v1", "connections", &id.to_string()])
}

/// Compile-time check that a client can be used from several threads.
const _: () = {
    const fn assert_send_sync<T: Send + Sync>() {}
    assert_send_sync::<Client>();
    assert_send_sync::<ClientError>();
};
