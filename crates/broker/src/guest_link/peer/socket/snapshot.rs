//! A process's socket in the document of a link.

use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{Finish, Protocol, Socket};
use crate::handover::{Blob, Exports, FdIndex, HandoverError, Imports};

/// A socket with the bytes that it has not accepted.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(in super::super) struct SocketState {
    data: Option<FdIndex>,
    protocol: ProtocolState,
    held: bool,
    pending: Option<Blob>,
    consumed: u64,
    finished: FinishState,
    sink_closed: bool,
    lost: bool,
    ended: bool,
    read_closed: bool,
    hung_up: bool,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ProtocolState {
    Announces,
    RawFd,
    Plain,
    Attached,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FinishState {
    No,
    Wanted,
    Done,
}

fn is_nonblocking(fd: &OwnedFd) -> bool {
    let flags = rustix::fs::fcntl_getfl(fd);
    flags.is_ok_and(|flags| flags.contains(OFlags::NONBLOCK))
}

impl Socket {
    pub(in super::super) fn hand_over(
        &self,
        exports: &mut Exports,
    ) -> Result<SocketState, HandoverError> {
        let Self {
            data,
            protocol,
            held,
            pending,
            start,
            consumed,
            // Both are looked at again.
            readable: _,
            writable: _,
            finished,
            sink_closed,
            lost,
            ended,
            read_closed,
            hung_up,
        } = self;
        let rest = pending.get(*start..).filter(|rest| !rest.is_empty());
        Ok(SocketState {
            data: data.as_ref().map(|data| exports.fd(data)).transpose()?,
            protocol: match protocol {
                Protocol::Announces => ProtocolState::Announces,
                Protocol::RawFd => ProtocolState::RawFd,
                Protocol::Plain => ProtocolState::Plain,
                Protocol::Attached => ProtocolState::Attached,
            },
            held: *held,
            pending: rest.map(|rest| exports.blob(rest)).transpose()?,
            consumed: *consumed,
            finished: match finished {
                Finish::No => FinishState::No,
                Finish::Wanted => FinishState::Wanted,
                Finish::Done => FinishState::Done,
            },
            sink_closed: *sink_closed,
            lost: *lost,
            ended: *ended,
            read_closed: *read_closed,
            hung_up: *hung_up,
        })
    }

    pub(in super::super) fn resume(
        state: SocketState,
        imports: &mut Imports,
    ) -> Result<Self, HandoverError> {
        let SocketState {
            data,
            protocol,
            held,
            pending,
            consumed,
            finished,
            sink_closed,
            lost,
            ended,
            read_closed,
            hung_up,
        } = state;
        let data = data.map(|data| imports.fd(data)).transpose()?;
        // A blocking socket would stop the VM's thread.
        if data.as_ref().is_some_and(|data| !is_nonblocking(data)) {
            let what = "the descriptor of a connection is no socket that does not block";
            return Err(HandoverError::inconsistent(what));
        }
        Ok(Self {
            data,
            protocol: match protocol {
                ProtocolState::Announces => Protocol::Announces,
                ProtocolState::RawFd => Protocol::RawFd,
                ProtocolState::Plain => Protocol::Plain,
                ProtocolState::Attached => Protocol::Attached,
            },
            held,
            pending: pending.map_or_else(|| Ok(Vec::new()), |blob| imports.blob(blob))?,
            start: 0,
            consumed,
            readable: true,
            writable: true,
            finished: match finished {
                FinishState::No => Finish::No,
                FinishState::Wanted => Finish::Wanted,
                FinishState::Done => Finish::Done,
            },
            sink_closed,
            lost,
            ended,
            read_closed,
            hung_up,
        })
    }
}
