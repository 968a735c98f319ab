//! The snapshot of a [`HandOver`] connection. [`crate::handover::snapshot`] describes its format.

use serde::{Deserialize, Serialize};

use super::HandOver;
use crate::data_path::{Charging, ControlConnection, ControlSnapshot, is_false};
use crate::handover::snapshot::ensure;
use crate::handover::{Exports, FdIndex, HandoverError, Imports};

/// A connection in which a process has the socket of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::pump) struct HandOverSnapshot {
    control: ControlSnapshot,
    socket: FdIndex,
    #[serde(default, skip_serializing_if = "is_false")]
    raw_fd: bool,
    /// Which side the process is.
    side: u8,
}

impl HandOver {
    /// The connection as a value.
    pub(in crate::pump) fn snapshot(
        &self,
        exports: &mut Exports,
    ) -> Result<HandOverSnapshot, HandoverError> {
        let Self {
            control,
            socket,
            raw_fd,
            side,
        } = self;
        Ok(HandOverSnapshot {
            control: control.snapshot(exports)?,
            socket: exports.fd(socket)?,
            raw_fd: *raw_fd,
            side: u8::from(*side != 0),
        })
    }

    /// The connection of a snapshot.
    ///
    /// # Errors
    ///
    /// If a descriptor is missing, or the side is none.
    pub(in crate::pump) fn restore(
        snapshot: HandOverSnapshot,
        imports: &mut Imports,
        charging: &mut Charging<'_>,
    ) -> Result<Self, HandoverError> {
        let HandOverSnapshot {
            control,
            socket,
            raw_fd,
            side,
        } = snapshot;
        ensure(side < 2, "a process is at no side of its connection")?;
        Ok(Self {
            control: ControlConnection::restore(control, imports, charging)?,
            socket: imports.fd(socket)?,
            raw_fd,
            side: side.into(),
        })
    }
}
