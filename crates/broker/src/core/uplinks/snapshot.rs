//! The snapshot of guests' connections to the broker, uplinks among them. [`crate::handover::snapshot`] describes
//! its format.
//!
//! Frames that wait are bytes that are to be sent. A request to a guest that it has not answered is among them
//! as one that is cancelled: who waits for it asks again.

use std::collections::BTreeSet;
use std::time::Instant;

use hvsock_address::{ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::uplink::{
    ChildId, FIRST_TOKEN_PORT, FrameReader, HostFrame, MAX_CHILDREN, MAX_PENDING, Request, Service,
};
use hvsock_fabric::PartitionKey;
use serde::{Deserialize, Serialize};

use super::{ExpectedConnect, Uplink, Uplinks};
use crate::budget::Charge;
use crate::handover::snapshot::{
    SnapshotError, check_limit, ensure, nanoseconds_until, read_version, time_at,
};
use crate::handover::{Blob, Exports, FdIndex, HandoverError, Imports};
use crate::uplink::{Client, GuestStream, Role, SessionState, UplinkSession};

/// The version of [`UplinksSnapshot`] that this release writes.
pub(in crate::core) const UPLINKS_SNAPSHOT_VERSION: u32 = 1;

/// All connections of guests to the broker.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::core) struct UplinksSnapshot {
    #[serde(deserialize_with = "read_version::<_, UPLINKS_SNAPSHOT_VERSION>")]
    pub(in crate::core) version: u32,
    /// How many there have been.
    pub(in crate::core) opened: u64,
    pub(in crate::core) clients: Vec<ClientSnapshot>,
}

/// One connection.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::core) struct ClientSnapshot {
    pub(in crate::core) vm: u64,
    #[serde(default)]
    pub(in crate::core) source_port: Option<u32>,
    role: RoleSnapshot,
    pub(in crate::core) socket: FdIndex,
    /// Bytes that have been received and not handled.
    pub(in crate::core) received: Blob,
    /// Bytes that are to be sent.
    pub(in crate::core) unsent: Blob,
    queries: u32,
    since: i64,
    deadline: i64,
    #[serde(default)]
    pub(in crate::core) uplink: Option<UplinkSnapshot>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RoleSnapshot {
    Queries,
    Uplink,
    Closing,
}

/// What there is of a connection that is an uplink.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::core) struct UplinkSnapshot {
    opened: i64,
    pub(in crate::core) children: Vec<ChildSnapshot>,
    /// The ports that the guest may connect to once.
    ports: Vec<PortSnapshot>,
    /// The last number of a request to the guest.
    last_request: u64,
    /// When the guest may change its containers again.
    busy_until: i64,
    last_received: i64,
    is_pinged: bool,
    suspended: bool,
    /// The services of which the guest was told, as frames.
    told: Blob,
}

/// A container in the VM.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(in crate::core) struct ChildSnapshot {
    number: u32,
    pub(in crate::core) partition: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct PortSnapshot {
    port: u32,
    request: u64,
    from: u64,
    vm: String,
    service: String,
    deadline: i64,
}

impl ClientSnapshot {
    /// A connection as a value. `uplink` is what there is of it as one.
    ///
    /// # Errors
    ///
    /// If a descriptor or buffer cannot be passed on.
    pub(in crate::core) fn of(
        client: &Client<GuestStream>,
        uplink: Option<&Uplink>,
        exports: &mut Exports,
        now: Instant,
    ) -> Result<Self, HandoverError> {
        let mut unsent = client.stream.to_send().to_vec();
        let uplink = uplink.map(|uplink| uplink.snapshot(&mut unsent, exports, now));
        let (since, deadline) = client.times();
        Ok(Self {
            vm: client.vm.as_u64(),
            source_port: client.source_port,
            role: match client.role {
                Role::Queries => RoleSnapshot::Queries,
                Role::Uplink => RoleSnapshot::Uplink,
                Role::Closing => RoleSnapshot::Closing,
            },
            socket: exports.fd(&client.stream)?,
            received: exports.blob(client.stream.received())?,
            unsent: exports.blob(&unsent)?,
            queries: client.queries,
            since: nanoseconds_until(since, now),
            deadline: nanoseconds_until(deadline, now),
            uplink: uplink.transpose()?,
        })
    }

    /// The connection of a stream.
    ///
    /// # Errors
    ///
    /// If it is damaged.
    pub(in crate::core) fn client(
        &self,
        vm: PartitionKey,
        stream: GuestStream,
        now: Instant,
    ) -> Result<Client<GuestStream>, SnapshotError> {
        let role = match self.role {
            RoleSnapshot::Queries => Role::Queries,
            RoleSnapshot::Uplink => Role::Uplink,
            RoleSnapshot::Closing => Role::Closing,
        };
        let is_uplink = role == Role::Uplink;
        ensure(
            is_uplink == self.uplink.is_some(),
            "an uplink has no state, or something else has one",
        )?;
        let client = Client::new(vm, self.source_port, stream, now);
        let may_be = !is_uplink || client.is_privileged();
        ensure(may_be, "an uplink is not from root of its guest")?;
        let times = (time_at(self.since, now)?, time_at(self.deadline, now)?);
        Ok(client.resume(role, self.queries, times))
    }
}

impl Uplink {
    /// The uplink as a value. The frames that wait are appended to the bytes that are to be sent.
    fn snapshot(
        &self,
        unsent: &mut Vec<u8>,
        exports: &mut Exports,
        now: Instant,
    ) -> Result<UplinkSnapshot, HandoverError> {
        let Self {
            client: _,
            session,
            opened,
            children,
            ports,
            incoming,
            // Calls wait on threads of this process; processes have been answered.
            explanations,
            last_request,
        } = self;
        let (frames, state) = session.state();
        frames.iter().for_each(|frame| frame.append(unsent));
        for request in incoming.keys().chain(explanations.keys()) {
            HostFrame::Cancel { request: *request }.append(unsent);
        }
        let SessionState {
            busy_until,
            last_received,
            is_pinged,
            suspended,
            told,
        } = state;
        let mut known = Vec::new();
        for service in told {
            HostFrame::Service(service).append(&mut known);
        }
        let children = children.iter().map(|(number, partition)| ChildSnapshot {
            number: number.0,
            partition: partition.as_u64(),
        });
        let ports = ports.iter().map(|(port, expected)| PortSnapshot {
            port: *port,
            request: expected.request.0,
            from: expected.from.as_u64(),
            vm: expected.address.vm.to_string(),
            service: expected.address.service.to_string(),
            deadline: nanoseconds_until(expected.deadline, now),
        });
        Ok(UplinkSnapshot {
            opened: nanoseconds_until(*opened, now),
            children: children.collect(),
            ports: ports.collect(),
            last_request: *last_request,
            busy_until: nanoseconds_until(busy_until, now),
            last_received: nanoseconds_until(last_received, now),
            is_pinged,
            suspended,
            told: exports.blob(&known)?,
        })
    }
}

impl Uplinks {
    /// Adds the uplink of a VM that is this connection. `charge` charges the VM for a port; `is_child` says which
    /// partitions are its containers.
    ///
    /// # Errors
    ///
    /// If the snapshot is damaged.
    pub(in crate::core) fn restore(
        &mut self,
        (vm, client): (PartitionKey, usize),
        snapshot: UplinkSnapshot,
        imports: &mut Imports,
        (charge, is_child): (impl Fn() -> Option<Charge>, impl Fn(PartitionKey) -> bool),
        now: Instant,
    ) -> Result<(), HandoverError> {
        let UplinkSnapshot {
            opened,
            children,
            ports,
            last_request,
            busy_until,
            last_received,
            is_pinged,
            suspended,
            told,
        } = snapshot;
        ensure(self.get(vm).is_none(), "a VM has two uplinks")?;
        check_limit("containers of a VM", children.len(), MAX_CHILDREN)?;
        check_limit("connects of a VM", ports.len(), MAX_PENDING)?;
        let state = SessionState {
            busy_until: time_at(busy_until, now)?,
            last_received: time_at(last_received, now)?,
            is_pinged,
            suspended,
            told: services(&imports.blob(told)?)?,
        };
        let session = UplinkSession::resume(state, now);
        let too_many = || HandoverError::inconsistent("a guest knows too many services");
        self.open(
            vm,
            client,
            session.ok_or_else(too_many)?,
            time_at(opened, now)?,
        );
        for ChildSnapshot { number, partition } in children {
            let (number, partition) = (ChildId(number), PartitionKey::from_u64(partition));
            let is_new = self.check_child(vm, number).is_ok() && self.number(partition).is_none();
            let is_known = number != ChildId::MACHINE && is_child(partition);
            ensure(
                is_new && is_known,
                "a container in a VM is none, or is there twice",
            )?;
            self.add_child(vm, number, partition);
        }
        let mut requests = BTreeSet::new();
        for port in ports {
            let from = PartitionKey::from_u64(port.from);
            let is_here = from == vm || is_child(from);
            let is_new = requests.insert(port.request);
            let is_token = (FIRST_TOKEN_PORT..u32::MAX).contains(&port.port);
            ensure(
                is_here && is_new && is_token,
                "a guest cannot have this connect",
            )?;
            let unnamed = || HandoverError::inconsistent("a connect of a guest has no address");
            let to: VmId = port.vm.parse().map_err(|_| unnamed())?;
            let service: ServiceId = port.service.parse().map_err(|_| unnamed())?;
            let expected = ExpectedConnect {
                request: Request(port.request),
                from,
                address: SockAddrHv::new(to, service),
                deadline: time_at(port.deadline, now)?,
                _charge: charge(),
            };
            let added = self.expect(vm, port.port, expected);
            ensure(added.is_ok(), "two connects of a guest have one port")?;
        }
        if let Some(uplink) = self.get_mut(vm) {
            uplink.last_request = last_request;
        }
        Ok(())
    }
}

/// The services of frames.
fn services(bytes: &[u8]) -> Result<Vec<Service>, HandoverError> {
    let damaged = || HandoverError::inconsistent("the services that a guest knows are none");
    let mut reader = FrameReader::new();
    reader.add(bytes);
    let mut services = Vec::new();
    while let Some(message) = reader.next().map_err(|_| damaged())? {
        match HostFrame::decode(message) {
            Ok(HostFrame::Service(service)) => services.push(service),
            _ => return Err(damaged()),
        }
    }
    match reader.is_empty() {
        true => Ok(services),
        false => Err(damaged()),
    }
}
