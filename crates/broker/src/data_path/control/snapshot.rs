//! The snapshot of a [`ControlConnection`]. [`crate::handover::snapshot`] describes its format.

use serde::{Deserialize, Serialize};

use super::ControlConnection;
use crate::data_path::ProcessSocket;
use crate::data_path::process_socket::snapshot::{Charging, SocketSnapshot, is_false};
use crate::handover::{Exports, FdIndex, HandoverError, Imports};

/// A control connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ControlSnapshot {
    /// Missing for a process without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    socket: Option<SocketSnapshot>,
    #[serde(default, skip_serializing_if = "is_false")]
    announced: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    closed: bool,
    /// There may be messages to read.
    #[serde(default, skip_serializing_if = "is_false")]
    readable: bool,
    /// A new value of `HVSOCKET_CONNECTED_SUSPEND` that was not reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    option: Option<bool>,
    /// The process's own socket that was not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attached: Option<FdIndex>,
    #[serde(default, skip_serializing_if = "is_false")]
    in_arena: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    arena_changed: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    arena_grow: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    asked_for_end: bool,
}

impl ControlConnection {
    /// The connection as a value.
    pub(crate) fn snapshot(&self, exports: &mut Exports) -> Result<ControlSnapshot, HandoverError> {
        let Self {
            socket,
            announced,
            closed,
            readable,
            option,
            attached,
            in_arena,
            arena_changed,
            arena_grow,
            asked_for_end,
        } = self;
        let socket = socket.as_ref().map(|socket| socket.snapshot(exports));
        let attached = attached.as_ref().map(|attached| exports.fd(attached));
        Ok(ControlSnapshot {
            socket: socket.transpose()?,
            announced: *announced,
            closed: *closed,
            readable: *readable,
            option: *option,
            attached: attached.transpose()?,
            in_arena: *in_arena,
            arena_changed: *arena_changed,
            arena_grow: *arena_grow,
            asked_for_end: *asked_for_end,
        })
    }

    /// The connection of a snapshot. Reads nothing.
    ///
    /// # Errors
    ///
    /// If a descriptor is missing.
    pub(crate) fn restore(
        snapshot: ControlSnapshot,
        imports: &mut Imports,
        charging: &mut Charging<'_>,
    ) -> Result<Self, HandoverError> {
        let socket = snapshot.socket;
        let socket = socket.map(|socket| ProcessSocket::restore(socket, imports, charging));
        Self::with_socket(snapshot, socket.transpose()?, imports)
    }

    /// As [`restore`](Self::restore), but nothing is charged for its descriptor.
    ///
    /// # Errors
    ///
    /// If a descriptor is missing.
    pub(crate) fn restore_uncharged(
        snapshot: ControlSnapshot,
        imports: &mut Imports,
    ) -> Result<Self, HandoverError> {
        let socket = snapshot.socket;
        let socket = socket.map(|socket| ProcessSocket::restore_uncharged(socket, imports));
        Self::with_socket(snapshot, socket.transpose()?, imports)
    }

    fn with_socket(
        snapshot: ControlSnapshot,
        socket: Option<ProcessSocket>,
        imports: &mut Imports,
    ) -> Result<Self, HandoverError> {
        let ControlSnapshot {
            socket: _,
            announced,
            closed,
            readable,
            option,
            attached,
            in_arena,
            arena_changed,
            arena_grow,
            asked_for_end,
        } = snapshot;
        let attached = attached.map(|attached| imports.fd(attached));
        Ok(Self {
            socket,
            announced,
            closed,
            // A closed one is not read any more.
            readable: readable && !closed,
            option,
            attached: attached.transpose()?,
            in_arena,
            arena_changed,
            arena_grow,
            asked_for_end,
        })
    }
}
