//! A control connection in a document.

use serde::{Deserialize, Serialize};

use super::ControlConnection;
use crate::data_path::ProcessSocket;
use crate::handover::{Exports, FdIndex, HandoverError, Imports};

/// A [`ControlConnection`] with what was read of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct ControlSnapshot {
    socket: Option<FdIndex>,
    announced: bool,
    closed: bool,
    readable: bool,
    option: Option<bool>,
    attached: Option<FdIndex>,
    in_arena: bool,
    arena_changed: bool,
    arena_grow: bool,
    asked_for_end: bool,
}

impl ControlConnection {
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
        let (socket, attached) = (socket.as_ref(), attached.as_ref());
        Ok(ControlSnapshot {
            socket: socket.map(|socket| exports.fd(socket)).transpose()?,
            announced: *announced,
            closed: *closed,
            readable: *readable,
            option: *option,
            attached: attached.map(|socket| exports.fd(socket)).transpose()?,
            in_arena: *in_arena,
            arena_changed: *arena_changed,
            arena_grow: *arena_grow,
            asked_for_end: *asked_for_end,
        })
    }

    /// Nothing is charged for its descriptor.
    pub(crate) fn restore(
        state: ControlSnapshot,
        imports: &mut Imports,
    ) -> Result<Self, HandoverError> {
        let ControlSnapshot {
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
        } = state;
        let socket = socket.map(|socket| imports.fd(socket)).transpose()?;
        Ok(Self {
            socket: socket.map(ProcessSocket::from),
            announced,
            closed,
            readable,
            option,
            attached: attached.map(|socket| imports.fd(socket)).transpose()?,
            in_arena,
            arena_changed,
            arena_grow,
            asked_for_end,
        })
    }
}
