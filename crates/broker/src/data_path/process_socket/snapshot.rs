//! The snapshot of a [`ProcessSocket`], and of those that have yet to be read. [`crate::handover::snapshot`] describes
//! its format.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use hvsock_sys::sync::lock;
use serde::{Deserialize, Serialize};

use super::{InFlightCharge, Inner, ProcessSocket, UnreadSockets};
use crate::budget::{Budget, Charge, ChargeSnapshot};
use crate::handover::snapshot::{check_version, read_version};
use crate::handover::{Exports, FdIndex, HandoverError, Imports};

/// The version of [`UnreadSocketsSnapshot`] that this release writes.
const UNREAD_SOCKETS_SNAPSHOT_VERSION: u32 = 1;

/// Of a damaged snapshot: the most messages that are charged for one socket. There are fewer descriptors than that.
const MAX_MESSAGES: u64 = 1 << 20;

/// A socket, and what is charged for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SocketSnapshot {
    descriptor: FdIndex,
    /// For its descriptor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    charge: Option<ChargeSnapshot>,
    /// For the messages that may be unread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    in_flight: Option<ChargeSnapshot>,
    /// The charge for messages is kept when all are read.
    #[serde(default, skip_serializing_if = "is_false")]
    kept: bool,
}

/// The sockets that the broker has done with, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UnreadSocketsSnapshot {
    #[serde(deserialize_with = "read_version::<_, UNREAD_SOCKETS_SNAPSHOT_VERSION>")]
    version: u32,
    sockets: Vec<SocketSnapshot>,
}

/// For `skip_serializing_if`.
pub(crate) fn is_false(value: &bool) -> bool {
    !value
}

/// Where sockets of a snapshot belong.
#[derive(Debug)]
pub(crate) struct Charging<'a> {
    pub(crate) descriptors: &'a Budget,
    pub(crate) messages: &'a Budget,
    pub(crate) unread: &'a Arc<UnreadSockets>,
    /// The sockets with a charge for messages that were made so far.
    pub(crate) in_flight: Vec<ProcessSocket>,
}

impl SocketSnapshot {
    fn of(
        fd: &OwnedFd,
        charge: Option<&Charge>,
        in_flight: &InFlightCharge,
        exports: &mut Exports,
    ) -> Result<Self, HandoverError> {
        let InFlightCharge {
            charge: messages,
            kept,
        } = in_flight;
        Ok(Self {
            descriptor: exports.fd(fd)?,
            charge: charge.map(Charge::snapshot),
            in_flight: messages.as_ref().map(Charge::snapshot),
            kept: *kept,
        })
    }

    fn charges(&self, charging: &Charging<'_>) -> (Option<Charge>, InFlightCharge) {
        let descriptor = self.charge.map(|one| one.charge(charging.descriptors, 1));
        let messages = self.in_flight;
        let in_flight = InFlightCharge {
            charge: messages.map(|all| all.charge(charging.messages, MAX_MESSAGES)),
            kept: self.kept,
        };
        (descriptor, in_flight)
    }
}

impl ProcessSocket {
    /// The socket as a value.
    pub(crate) fn snapshot(&self, exports: &mut Exports) -> Result<SocketSnapshot, HandoverError> {
        let Inner {
            fd,
            charge,
            in_flight: _,
            unread: _,
        } = &*self.0;
        match fd {
            Some(fd) => SocketSnapshot::of(fd, charge.as_ref(), &self.0.in_flight(), exports),
            None => unreachable!("it is taken only when the last reference is dropped"),
        }
    }

    /// The socket of a snapshot, charged again.
    ///
    /// # Errors
    ///
    /// If its descriptor is missing.
    pub(crate) fn restore(
        snapshot: SocketSnapshot,
        imports: &mut Imports,
        charging: &mut Charging<'_>,
    ) -> Result<Self, HandoverError> {
        let fd = imports.fd(snapshot.descriptor)?;
        let (charge, in_flight) = snapshot.charges(charging);
        let socket = Self::with(fd, charge);
        let has_messages = in_flight.charge.is_some();
        *socket.0.in_flight() = in_flight;
        if has_messages {
            socket.0.unread.get_or_init(|| Arc::clone(charging.unread));
            charging.in_flight.push(socket.clone());
        }
        Ok(socket)
    }
}

impl ProcessSocket {
    /// The socket of a snapshot, without its charges.
    ///
    /// # Errors
    ///
    /// If its descriptor is missing.
    pub(crate) fn restore_uncharged(
        snapshot: SocketSnapshot,
        imports: &mut Imports,
    ) -> Result<Self, HandoverError> {
        imports.fd(snapshot.descriptor).map(Self::from)
    }
}

impl UnreadSockets {
    /// The sockets as a value.
    pub(crate) fn snapshot(
        &self,
        exports: &mut Exports,
    ) -> Result<UnreadSocketsSnapshot, HandoverError> {
        let sockets = lock(&self.sockets);
        let sockets = sockets.iter().map(|(fd, in_flight, charge)| {
            SocketSnapshot::of(fd, charge.as_ref(), in_flight, exports)
        });
        Ok(UnreadSocketsSnapshot {
            version: UNREAD_SOCKETS_SNAPSHOT_VERSION,
            sockets: sockets.collect::<Result<_, _>>()?,
        })
    }

    /// Adds the sockets of a snapshot to those of `charging`.
    ///
    /// # Errors
    ///
    /// If the snapshot is damaged.
    pub(crate) fn restore(
        snapshot: UnreadSocketsSnapshot,
        imports: &mut Imports,
        charging: &Charging<'_>,
    ) -> Result<(), HandoverError> {
        let UnreadSocketsSnapshot { version, sockets } = snapshot;
        check_version(version, UNREAD_SOCKETS_SNAPSHOT_VERSION)?;
        for socket in sockets {
            let fd = imports.fd(socket.descriptor)?;
            let (charge, in_flight) = socket.charges(charging);
            lock(&charging.unread.sockets).push_back((fd, in_flight, charge));
        }
        Ok(())
    }
}
