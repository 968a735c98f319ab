//! Names for people, from what the fabric knows.

use hvsock_address::{ElementName, ServiceId};
use hvsock_fabric::{Fabric, PartitionKey};

/// A partition's name; nothing for one that is gone.
pub(super) fn partition_label(fabric: &Fabric, key: PartitionKey) -> String {
    fabric
        .partition(key)
        .map_or_else(String::new, |partition| partition.name().to_string())
}

/// A service's friendly name, or its GUID where it is not registered.
pub(super) fn service_label(fabric: &Fabric, id: ServiceId) -> String {
    service_name(fabric, id).map_or_else(|| id.to_string(), ToString::to_string)
}

/// A service's friendly name in the registry of the broker's partition.
pub(super) fn service_name(fabric: &Fabric, id: ServiceId) -> Option<&ElementName> {
    Some(&fabric.registry(fabric.root())?.get(id)?.name)
}

/// The service if it is registered.
pub(super) fn registered(fabric: &Fabric, id: ServiceId) -> Option<ServiceId> {
    service_name(fabric, id).map(|_| id)
}
