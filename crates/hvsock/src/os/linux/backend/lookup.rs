//! Resolution of names by the broker, or by that of the host.

use std::io;

use hvsock_address::{ElementName, PartitionName, ServiceId, VmId};
use hvsock_endpoint::{BrokerMessage, ClientMessage, LookupKind};

use super::choose::{Backend, choose};
use super::execute::query;
use super::vsock;
use crate::Endpoint;
use crate::backend::REPLY_TIMEOUT;

/// Returns the id of the service with this friendly name.
pub(crate) fn service_id(endpoint: &Endpoint, name: &ElementName) -> io::Result<ServiceId> {
    let guid = lookup(endpoint, LookupKind::Service, name.as_str())?;
    Ok(ServiceId::from_guid_bytes(guid))
}

/// Returns the id of the partition with this name.
pub(crate) fn vm_id(endpoint: &Endpoint, name: &PartitionName) -> io::Result<VmId> {
    let guid = lookup(endpoint, LookupKind::Partition, name.as_str())?;
    Ok(VmId::from_guid_bytes(guid))
}

/// The name that the broker resolves to the host of its virtual machine. No partition can have it.
const HOST: &str = "host";

pub(crate) fn host_id(endpoint: &Endpoint) -> io::Result<VmId> {
    let guid = lookup(endpoint, LookupKind::Partition, HOST)?;
    Ok(VmId::from_guid_bytes(guid))
}

fn lookup(endpoint: &Endpoint, kind: LookupKind, name: &str) -> io::Result<[u8; 16]> {
    if choose(endpoint) == Backend::Vsock {
        return vsock::look_up(kind, name, REPLY_TIMEOUT);
    }
    let request = ClientMessage::Lookup {
        kind,
        name: name.to_owned(),
    };
    match query(endpoint, &request)? {
        (_, BrokerMessage::Found { guid }) => Ok(guid),
        (connection, _) => Err(connection.protocol_error(&"unexpected reply to LOOKUP")),
    }
}
