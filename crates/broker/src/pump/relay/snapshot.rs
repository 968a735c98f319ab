//! The snapshot of a [`Relay`]. [`crate::handover::snapshot`] describes its format.

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{Flow, Relay, RelayEnd, Source};
use crate::data_path::{Charging, ControlConnection, ControlSnapshot, is_false};
use crate::handover::snapshot::ensure;
use crate::handover::{Blob, Exports, FdIndex, HandoverError, Imports};

/// A relayed connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::pump) struct RelaySnapshot {
    /// The client's end, then the server's.
    ends: [EndSnapshot; 2],
    /// From client to server, then back.
    flows: [FlowSnapshot; 2],
    #[serde(default, skip_serializing_if = "is_false")]
    suspended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EndSnapshot {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    control: Option<ControlSnapshot>,
    data: FdIndex,
    #[serde(default, skip_serializing_if = "is_false")]
    raw_fd: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    is_process: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    half_close: bool,
    /// A read may return data.
    #[serde(default, skip_serializing_if = "is_false")]
    readable: bool,
    /// The last write found the send buffer full.
    #[serde(default, skip_serializing_if = "is_false")]
    full: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    hung_up: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct FlowSnapshot {
    /// Bytes that the sink has not accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pending: Option<Blob>,
    #[serde(default, skip_serializing_if = "SourceSnapshot::is_open")]
    source: SourceSnapshot,
    #[serde(default, skip_serializing_if = "is_false")]
    sink_closed: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    is_bulk: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    lost: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    unread: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    finished: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SourceSnapshot {
    #[default]
    Open,
    Ended,
    Broken,
}

impl SourceSnapshot {
    fn is_open(&self) -> bool {
        *self == Self::Open
    }
}

impl Relay {
    /// The connection as a value.
    pub(in crate::pump) fn snapshot(
        &self,
        exports: &mut Exports,
    ) -> Result<RelaySnapshot, HandoverError> {
        let Self {
            ends: [client, server],
            flows: [forward, back],
            suspended,
        } = self;
        Ok(RelaySnapshot {
            ends: [client.snapshot(exports)?, server.snapshot(exports)?],
            flows: [forward.snapshot(exports)?, back.snapshot(exports)?],
            suspended: *suspended,
        })
    }

    /// The connection of a snapshot. Reads and writes nothing.
    ///
    /// # Errors
    ///
    /// If a descriptor or a buffer is missing, or a descriptor would block.
    pub(in crate::pump) fn restore(
        snapshot: RelaySnapshot,
        imports: &mut Imports,
        charging: &mut Charging<'_>,
    ) -> Result<Self, HandoverError> {
        let RelaySnapshot {
            ends: [client, server],
            flows: [forward, back],
            suspended,
        } = snapshot;
        Ok(Self {
            ends: [
                RelayEnd::restore(client, imports, charging)?,
                RelayEnd::restore(server, imports, charging)?,
            ],
            flows: [
                Flow::restore(forward, imports)?,
                Flow::restore(back, imports)?,
            ],
            suspended,
        })
    }
}

impl RelayEnd {
    fn snapshot(&self, exports: &mut Exports) -> Result<EndSnapshot, HandoverError> {
        let Self {
            control,
            data,
            raw_fd,
            is_process,
            half_close,
            readable,
            writable,
            hung_up,
            // Of this process's epoll.
            watches_writable: _,
            // Read from the system.
            send_buffer: _,
        } = self;
        let control = control.as_ref().map(|control| control.snapshot(exports));
        Ok(EndSnapshot {
            control: control.transpose()?,
            data: exports.fd(data)?,
            raw_fd: *raw_fd,
            is_process: *is_process,
            half_close: *half_close,
            readable: *readable,
            full: !*writable,
            hung_up: *hung_up,
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
            is_process,
            half_close,
            readable,
            full,
            hung_up,
        } = snapshot;
        let control = control.map(|control| ControlConnection::restore(control, imports, charging));
        let data = imports.fd(data)?;
        let flags = rustix::fs::fcntl_getfl(&data);
        let flags = flags.map_err(|error| HandoverError::io("read its flags")(error.into()))?;
        // The descriptor of another object must not stop the thread.
        let is_nonblocking = flags.contains(OFlags::NONBLOCK);
        ensure(is_nonblocking, "a descriptor of a connection blocks")?;
        Ok(Self {
            control: control.transpose()?,
            data,
            raw_fd,
            is_process,
            half_close,
            readable,
            writable: !full,
            hung_up,
            // Watching it for that reports at once whether there is free space by now.
            watches_writable: full,
            send_buffer: None,
        })
    }
}

impl Flow {
    fn snapshot(&self, exports: &mut Exports) -> Result<FlowSnapshot, HandoverError> {
        let Self {
            pending,
            start,
            source,
            sink_closed,
            is_bulk,
            lost,
            unread,
            finished,
        } = self;
        let pending = pending.get(*start..).filter(|rest| !rest.is_empty());
        Ok(FlowSnapshot {
            pending: pending.map(|rest| exports.blob(rest)).transpose()?,
            source: match source {
                Source::Open => SourceSnapshot::Open,
                Source::Ended => SourceSnapshot::Ended,
                Source::Broken => SourceSnapshot::Broken,
            },
            sink_closed: *sink_closed,
            is_bulk: *is_bulk,
            lost: *lost,
            unread: *unread,
            finished: *finished,
        })
    }

    fn restore(snapshot: FlowSnapshot, imports: &mut Imports) -> Result<Self, HandoverError> {
        let FlowSnapshot {
            pending,
            source,
            sink_closed,
            is_bulk,
            lost,
            unread,
            finished,
        } = snapshot;
        let pending = pending.map(|rest| imports.blob(rest)).transpose()?;
        Ok(Self {
            pending: pending.unwrap_or_default(),
            start: 0,
            source: match source {
                SourceSnapshot::Open => Source::Open,
                SourceSnapshot::Ended => Source::Ended,
                SourceSnapshot::Broken => Source::Broken,
            },
            sink_closed,
            is_bulk,
            lost,
            unread,
            finished,
        })
    }
}
