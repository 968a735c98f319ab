//! What the uplink tells the core.

use std::time::Duration;

use hvsock_address::{ServiceId, VmId};
use hvsock_endpoint::Refused;
use hvsock_endpoint::uplink::{Request, Service, Welcome};
use hvsock_fabric::{ConnectionId, Refusal};

/// An event of the uplink, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UplinkEvent {
    /// The state has changed.
    State(UplinkState),
    /// These are the host's services that this machine may know, and no others.
    Services(Vec<Service>),
    /// A service is new, or what this machine may do with it has changed.
    Service(Service),
    /// A service is known no longer.
    ServiceGone(ServiceId),
    /// What the host had changed before this [`sync`](super::UplinkClient::sync) has been told.
    Synced(u64),
    /// The host has accepted a container, under this name, or refused it, for this reason.
    Announced(VmId, Result<String, String>),
    /// The answer to [`look_up`](super::UplinkClient::look_up), by its number: the service, or that the host names none.
    LookedUp(u64, Option<ServiceId>),
    /// The host has refused a connection whose stream was connected already.
    StreamRefused(ConnectionId, Refusal),
    /// The host requests a connection: judge it, and answer by
    /// [`expect`](super::UplinkClient::expect) or [`refuse_incoming`](super::UplinkClient::refuse_incoming).
    Incoming(Incoming),
    /// The host asks whether it would be accepted: answer by
    /// [`explained`](super::UplinkClient::explained).
    Explain(Incoming),
    /// The answer to [`explain`](super::UplinkClient::explain), by its number.
    Explained(u64, Refused),
}

/// A connection that the host requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Incoming {
    /// The number of the request.
    pub(crate) request: Request,
    /// The container; `None` is the machine itself.
    pub(crate) child: Option<VmId>,
    /// The service.
    pub(crate) service: ServiceId,
    /// How long the answer may take.
    pub(crate) timeout: Duration,
}

/// The state of the uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UplinkState {
    /// It is being made for the first time.
    Connecting,
    /// The host has welcomed this machine.
    Open(Welcome),
    /// There is none. Another attempt follows.
    Down(WhyDown),
}

/// Why there is no uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WhyDown {
    /// Nobody listens at its port of the host, or there is no such host.
    NoBroker,
    /// This broker may not connect from a port below 1024.
    Unprivileged,
    /// The host refuses it, for this reason.
    Refused(String),
    /// Something failed, in words.
    Failed(String),
}

impl UplinkState {
    /// Whether the host has a broker that looks names up, and no uplink to this one.
    pub(crate) fn has_lookups_only(&self) -> bool {
        matches!(
            self,
            Self::Down(WhyDown::Unprivileged | WhyDown::Refused(_))
        )
    }
}

impl std::fmt::Display for WhyDown {
    /// A clause.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoBroker => {
                f.write_str("nobody answers at vsock port 920 of the host, where its broker would")
            }
            Self::Unprivileged => f.write_str(
                "this broker may not connect from a vsock port below 1024, which needs root",
            ),
            Self::Refused(why) => write!(f, "the host refuses it: {why}"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}
