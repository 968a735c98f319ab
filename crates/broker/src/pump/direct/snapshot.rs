//! The snapshot of a [`Direct`] connection. [`crate::handover::snapshot`] describes its format.

use serde::{Deserialize, Serialize};

use super::{Direct, DirectEnd};
use crate::data_path::{Charging, ControlConnection, ControlSnapshot, is_false};
use crate::handover::{Exports, FdIndex, HandoverError, Imports};

/// A direct connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::pump) struct DirectSnapshot {
    /// The client's end, then the server's.
    ends: [EndSnapshot; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EndSnapshot {
    control: ControlSnapshot,
    /// Missing once control has closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<FdIndex>,
    #[serde(default, skip_serializing_if = "is_false")]
    raw_fd: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    is_passed_on: bool,
}

impl Direct {
    /// The connection as a value.
    pub(in crate::pump) fn snapshot(
        &self,
        exports: &mut Exports,
    ) -> Result<DirectSnapshot, HandoverError> {
        let Self {
            ends: [client, server],
        } = self;
        Ok(DirectSnapshot {
            ends: [client.snapshot(exports)?, server.snapshot(exports)?],
        })
    }

    /// The connection of a snapshot.
    ///
    /// # Errors
    ///
    /// If a descriptor is missing.
    pub(in crate::pump) fn restore(
        snapshot: DirectSnapshot,
        imports: &mut Imports,
        charging: &mut Charging<'_>,
    ) -> Result<Self, HandoverError> {
        let DirectSnapshot {
            ends: [client, server],
        } = snapshot;
        Ok(Self {
            ends: [
                DirectEnd::restore(client, imports, charging)?,
                DirectEnd::restore(server, imports, charging)?,
            ],
        })
    }
}

impl DirectEnd {
    fn snapshot(&self, exports: &mut Exports) -> Result<EndSnapshot, HandoverError> {
        let Self {
            control,
            data,
            raw_fd,
            is_passed_on,
        } = self;
        Ok(EndSnapshot {
            control: control.snapshot(exports)?,
            data: data.as_ref().map(|data| exports.fd(data)).transpose()?,
            raw_fd: *raw_fd,
            is_passed_on: *is_passed_on,
        })
    }

    fn restore(
        snapshot: EndSnapshot,
        imports: &mut Imports,
        charging: &mut Charging<'_>,
    ) -> Result<Self, HandoverError> {
        let EndSnapshot {
            control,
            data,
            raw_fd,
            is_passed_on,
        } = snapshot;
        Ok(Self {
            control: ControlConnection::restore(control, imports, charging)?,
            data: data.map(|data| imports.fd(data)).transpose()?,
            raw_fd,
            is_passed_on,
        })
    }
}
