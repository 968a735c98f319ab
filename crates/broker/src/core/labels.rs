//! Names of partitions and services for output.

use hvsock_address::{ElementName, ServiceId};
use hvsock_fabric::{Fabric, PartitionKey};

/// A partition's name, empty if it was removed.
pub(super) fn partition_label(fabric: &Fabric, key: PartitionKey) -> String {
    fabric
        .partition(key)
        .map_or_else(String::new, |partition| partition.name().to_string())
}

/// A service's friendly name, or its GUID if it is not registered.
pub(super) fn service_label(fabric: &Fabric, id: ServiceId) -> String {
    service_name(fabric, id).map_or_else(|| id.to_string(), ToString::to_string)
}

/// A service's friendly name in the registry of the broker's partition.
pub(super) fn service_name(fabric: &Fabric, id: ServiceId) -> Option<&ElementName> {
    Some(&fabric.registry(fabric.root())?.get(id)?.name)
}

/// `id` if the service is registered.
pub(super) fn registered(fabric: &Fabric, id: ServiceId) -> Option<ServiceId> {
    service_name(fabric, id).map(|_| id)
}
