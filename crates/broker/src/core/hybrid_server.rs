//! Serves hybrid vsock: processes of the host that know only Firecracker's convention connect to a VM's
//! socket, send a line with a port, and get a stream to the guest.
//!
//! Such a client is a session until its request is complete. From then on its connect is one of a process:
//! the same rules, explanations, events and audit, and the same [`connect_to_guest`]. It differs in what
//! it is answered, in lines instead of messages, and in its end of the connection, which is the client's
//! own socket: there is no control connection, so no end of data is announced and no refusal arrives after
//! the answer.
//!
//! [`connect_to_guest`]: Core::connect_to_guest

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use hvsock_address::SockAddrHv;
use hvsock_endpoint::{
    Connect, Flags, HybridRequest, IdOrName, NamedAddress, Transport, Transports,
};
use hvsock_fabric::{ConnectionEnd, PartitionKey, Refusal};

use super::guest_shares::DEFAULT_BUFFER;
use super::hybrid_answers::send_refused;
use super::limits::descriptor_limit;
use super::line_requests::{Received, receive};
use super::pending::ProcessPart;
use super::sessions::{Entry, Session};
use super::state::Core;
use crate::audit::{self, MAX_TEXT};
use crate::data_path::{ByteCounters, ProcessSocket};
use crate::guest_link::{LinkCounters, LinkEnd, Peer};

/// How long a guest may take to accept. The client cannot say how long it waits. systemd-ssh-proxy waits 5
/// seconds, and so gets the reason.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(4);

/// The process's part of a connection with a guest and its transport, and what the link moves bytes from and
/// to, if it does.
type GuestEnds = (ProcessPart, Transport, Option<LinkEnd>);

impl Core {
    /// Reads a client's request, and connects it once that is complete. `index` is the index of a watched
    /// session. Returns the session while the request is incomplete.
    pub(super) fn read_hybrid_request(
        &mut self,
        mut session: Session<ProcessSocket>,
        index: Option<usize>,
    ) -> Option<(Session<ProcessSocket>, bool)> {
        let Entry::Hybrid(entry) = &mut session.entry else {
            return None;
        };
        match receive(&session.socket, &mut entry.request) {
            Received::Incomplete => Some((session, false)),
            Received::Closed => None,
            Received::Invalid(error) => {
                let cause = audit::visible(&error.to_string(), MAX_TEXT);
                send_refused(&session.socket, &cause);
                None
            }
            Received::Request(request) => {
                let vm = entry.vm;
                self.connect_hybrid(session, vm, request, index);
                None
            }
        }
    }

    fn connect_hybrid(
        &mut self,
        session: Session<ProcessSocket>,
        vm: PartitionKey,
        request: HybridRequest,
        index: Option<usize>,
    ) {
        // The session of a VM that is removed ends before the VM.
        let Some(partition) = self.fabric.partition(vm) else {
            return self.send_refusal(&session, &Refusal::PartitionOff);
        };
        let (id, vm_name) = (partition.vm_id(), partition.name().to_string());
        let service = match request {
            HybridRequest::Port(port) => Ok(self.fabric.service_for_port(vm, port)),
            HybridRequest::Service(service) => Ok(service),
            HybridRequest::Name(name) => {
                let found = self.fabric.service_id_by_name(session.partition, &name);
                found.ok_or_else(|| name.to_string())
            }
        };
        match service {
            Ok(service) => {
                let connect = request_to(SockAddrHv::new(id, service));
                self.connect_idle(session, &connect, index);
            }
            Err(name) => {
                let address = NamedAddress {
                    partition: IdOrName::Name(vm_name),
                    service: IdOrName::Name(name),
                };
                self.audit_unknown(&session, "connect", &address, &Refusal::Unregistered);
                self.refuse_name(&session, &Refusal::Unregistered);
            }
        }
    }

    /// Both ends of a connection of a client to the guest of `vm`, as
    /// [`make_ends`](super::guest_ends::make_ends): what the link moves bytes from and to, or what the
    /// broker relays. Both are a duplicate of the client's socket, on which the core still answers.
    pub(super) fn own_ends(
        &self,
        socket: &ProcessSocket,
        vm: PartitionKey,
        counters: &Arc<ByteCounters>,
    ) -> Result<GuestEnds, Refusal> {
        let data = socket.as_fd().try_clone_to_owned();
        let data = data.map_err(|error| descriptor_limit(&error))?;
        let transport = Transport::Descriptor;
        if !self.capabilities(vm).byte_counts {
            return Ok((ProcessPart::OwnRelayed(data), transport, None));
        }
        let end = LinkEnd {
            peer: Peer::plain_socket(data),
            counters: LinkCounters::new(Arc::clone(counters), ConnectionEnd::Server),
            buffer: DEFAULT_BUFFER,
            reports: true,
        };
        Ok((ProcessPart::Own, transport, Some(end)))
    }
}

/// A client's request as the endpoint protocol has it.
fn request_to(address: SockAddrHv) -> Connect {
    Connect {
        flags: Flags::default(),
        timeout_ms: ACCEPT_TIMEOUT.as_millis() as u32,
        transports: Transports::DESCRIPTOR,
        address,
    }
}
