//! What waits for the host: requests, and explanations.

use std::sync::mpsc::SyncSender;

use hvsock_endpoint::ClientMessage;
use hvsock_fabric::{Explanation, Refusal};

use super::sessions::Session;
use crate::data_path::ProcessSocket;

/// A request that is handled again once the host has said all that it has changed.
#[derive(Debug)]
pub(super) struct HeldRequest {
    pub(super) session: Session<ProcessSocket>,
    pub(super) message: ClientMessage,
}

/// An explanation that waits for the host's part.
#[derive(Debug)]
pub(super) struct HeldExplanation {
    pub(super) own: Explanation,
    /// What the request was refused for, if it was made.
    pub(super) refusal: Option<Refusal>,
    pub(super) asker: Asker,
}

/// Who wants an explanation.
#[derive(Debug)]
pub(super) enum Asker {
    Process(Session<ProcessSocket>),
    /// A call of an operator.
    Call(SyncSender<Explanation>),
}
