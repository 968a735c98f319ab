//! The snapshot of the endpoint sockets. [`crate::handover::snapshot`] describes its format. Clients that wait to
//! be accepted stay in the sockets' queues.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use hvsock_fabric::PartitionKey;
use rustix::net::SocketAddrUnix;
use serde::{Deserialize, Serialize};

use super::{Endpoint, EndpointKind, Endpoints};
use crate::handover::snapshot::{check_version, ensure, read_version};
use crate::handover::{Exports, FdIndex, HandoverError, Imports};

/// The version of [`EndpointsSnapshot`] that this release writes.
const ENDPOINTS_SNAPSHOT_VERSION: u32 = 1;

/// All endpoint sockets.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::core) struct EndpointsSnapshot {
    #[serde(deserialize_with = "read_version::<_, ENDPOINTS_SNAPSHOT_VERSION>")]
    version: u32,
    endpoints: Vec<EndpointSnapshot>,
}

#[derive(Debug, Serialize, Deserialize)]
struct EndpointSnapshot {
    kind: KindSnapshot,
    partition: u64,
    path: PathBuf,
    socket: FdIndex,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KindSnapshot {
    Endpoint,
    Text,
    Hybrid,
}

impl Endpoints {
    /// The sockets as a value.
    pub(in crate::core) fn snapshot(
        &self,
        exports: &mut Exports,
    ) -> Result<EndpointsSnapshot, HandoverError> {
        // Which have clients is seen again when they are watched; a shortage is found again.
        let Self {
            registry: _,
            endpoints,
            busy: _,
            shortage: _,
        } = self;
        let mut all = Vec::with_capacity(endpoints.len());
        for (_, endpoint) in endpoints {
            let Endpoint {
                socket,
                kind,
                partition,
                path,
                busy: _,
            } = endpoint;
            all.push(EndpointSnapshot {
                kind: match kind {
                    EndpointKind::Endpoint => KindSnapshot::Endpoint,
                    EndpointKind::Text => KindSnapshot::Text,
                    EndpointKind::Hybrid => KindSnapshot::Hybrid,
                },
                partition: partition.as_u64(),
                path: path.clone(),
                socket: exports.fd(socket)?,
            });
        }
        Ok(EndpointsSnapshot {
            version: ENDPOINTS_SNAPSHOT_VERSION,
            endpoints: all,
        })
    }

    /// Adds the sockets of a snapshot, and watches them. `is_known` says which partitions there are.
    ///
    /// # Errors
    ///
    /// If the snapshot is damaged.
    pub(in crate::core) fn restore(
        &mut self,
        snapshot: EndpointsSnapshot,
        imports: &mut Imports,
        is_known: impl Fn(PartitionKey) -> bool,
    ) -> Result<(), HandoverError> {
        let EndpointsSnapshot { version, endpoints } = snapshot;
        check_version(version, ENDPOINTS_SNAPSHOT_VERSION)?;
        let mut seen = HashSet::new();
        for endpoint in endpoints {
            let EndpointSnapshot {
                kind,
                partition,
                path,
                socket,
            } = endpoint;
            let is_new = seen.insert((kind, partition));
            ensure(is_new, "a partition has two sockets of one kind")?;
            let partition = PartitionKey::from_u64(partition);
            ensure(is_known(partition), "a socket is of no partition")?;
            let socket = imports.fd(socket)?;
            // A process at another socket would count as one in the partition.
            let is_it = is_bound_to(&socket, &path);
            ensure(is_it, "the socket of a partition is at another path")?;
            let kind = match kind {
                KindSnapshot::Endpoint => EndpointKind::Endpoint,
                KindSnapshot::Text => EndpointKind::Text,
                KindSnapshot::Hybrid => EndpointKind::Hybrid,
            };
            let watched = self.add(Endpoint {
                socket,
                kind,
                partition,
                path,
                busy: false,
            });
            watched.map_err(|(_, error)| HandoverError::io("watch an endpoint")(error))?;
        }
        Ok(())
    }
}

fn is_bound_to(socket: impl AsFd, path: &Path) -> bool {
    let address = rustix::net::getsockname(socket).map(SocketAddrUnix::try_from);
    let Ok(Ok(address)) = address else {
        return false;
    };
    let bound = address.path_bytes();
    // The kernel counts a terminating zero byte.
    let bound = bound.map(|bound| bound.strip_suffix(&[0]).unwrap_or(bound));
    bound == Some(path.as_os_str().as_bytes())
}
