//! Uplinks of brokers in guests: which VM has one, the containers that it has announced, and the connects in both
//! directions that wait for it.

pub(super) mod snapshot;
#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use hvsock_address::SockAddrHv;
use hvsock_endpoint::Refused;
use hvsock_endpoint::uplink::{ChildId, MAX_CHILDREN, MAX_PENDING, Request};
use hvsock_fabric::{ConnectionId, Explanation, PartitionKey};

use super::sessions::Session;
use crate::budget::Charge;
use crate::data_path::ProcessSocket;
use crate::uplink::UplinkSession;

/// The uplinks by VM.
#[derive(Debug, Default)]
pub(super) struct Uplinks {
    by_vm: HashMap<PartitionKey, Uplink>,
    by_client: HashMap<usize, PartitionKey>,
    /// The VM and the number of each announced container.
    children: HashMap<PartitionKey, (PartitionKey, ChildId)>,
    /// The ports that guests may connect to once, by deadline.
    deadlines: BTreeSet<(Instant, PartitionKey, u32)>,
    /// Number of connects to guests that are not answered.
    waiting: usize,
    /// Number of processes that wait for explanations of guests.
    asking: usize,
}

/// One uplink.
#[derive(Debug)]
pub(super) struct Uplink {
    /// Its connection among those of guests.
    pub(super) client: usize,
    pub(super) session: UplinkSession,
    pub(super) opened: Instant,
    children: BTreeMap<ChildId, PartitionKey>,
    ports: BTreeMap<u32, ExpectedConnect>,
    incoming: BTreeMap<Request, ConnectionId>,
    explanations: BTreeMap<Request, Asker>,
    /// The last number of a request to the guest.
    last_request: u64,
}

/// A connect of a guest that was allowed, and whose stream has not arrived at its port.
#[derive(Debug)]
pub(super) struct ExpectedConnect {
    pub(super) request: Request,
    /// The VM, or the container that connects.
    pub(super) from: PartitionKey,
    pub(super) address: SockAddrHv,
    pub(super) deadline: Instant,
    /// For the link's socket at the port, if it needs one.
    pub(super) _charge: Option<Charge>,
}

/// Who waits for the answer to a question.
#[derive(Debug)]
pub(super) enum Asker {
    /// A call of the core, which waits on its own thread.
    Call(SyncSender<Refused>),
    /// A process at its endpoint.
    Process(Box<AskingProcess>),
}

/// A process that waits for an explanation.
#[derive(Debug)]
pub(super) struct AskingProcess {
    pub(super) session: Session<ProcessSocket>,
    /// The host's part.
    pub(super) explanation: Explanation,
    pub(super) deadline: Instant,
}

/// Why something cannot be added to an uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotAdded {
    /// The VM has no uplink.
    NoUplink,
    /// The number is in use.
    InUse,
    /// There are too many.
    Full,
}

impl Uplinks {
    /// Adds the uplink of a VM that has none.
    pub(super) fn open(
        &mut self,
        vm: PartitionKey,
        client: usize,
        session: UplinkSession,
        now: Instant,
    ) {
        debug_assert!(!self.by_vm.contains_key(&vm));
        let uplink = Uplink {
            client,
            session,
            opened: now,
            children: BTreeMap::new(),
            ports: BTreeMap::new(),
            incoming: BTreeMap::new(),
            explanations: BTreeMap::new(),
            last_request: 0,
        };
        self.by_client.insert(client, vm);
        self.by_vm.insert(vm, uplink);
    }

    /// Removes the uplink of a VM, with all that waits for it.
    pub(super) fn remove(&mut self, vm: PartitionKey) -> Option<Uplink> {
        let uplink = self.by_vm.remove(&vm)?;
        self.by_client.remove(&uplink.client);
        for child in uplink.children.values() {
            self.children.remove(child);
        }
        for (port, expected) in &uplink.ports {
            self.deadlines.remove(&(expected.deadline, vm, *port));
        }
        self.waiting -= uplink.incoming.len();
        let asking = uplink
            .explanations
            .values()
            .filter(|asker| asker.is_process());
        self.asking -= asking.count();
        Some(uplink)
    }

    /// The uplink of a VM.
    pub(super) fn get(&self, vm: PartitionKey) -> Option<&Uplink> {
        self.by_vm.get(&vm)
    }

    /// The uplink of a VM, to change its session.
    pub(super) fn get_mut(&mut self, vm: PartitionKey) -> Option<&mut Uplink> {
        self.by_vm.get_mut(&vm)
    }

    /// The VM whose uplink is this connection.
    pub(super) fn vm_of(&self, client: usize) -> Option<PartitionKey> {
        self.by_client.get(&client).copied()
    }

    /// The VMs that have an uplink.
    pub(super) fn vms(&self) -> Vec<PartitionKey> {
        self.by_vm.keys().copied().collect()
    }

    /// Number of announced containers of all VMs.
    pub(super) fn children_count(&self) -> usize {
        self.children.len()
    }

    /// Checks that a container may be announced with this number.
    pub(super) fn check_child(&self, vm: PartitionKey, number: ChildId) -> Result<(), NotAdded> {
        let uplink = self.by_vm.get(&vm).ok_or(NotAdded::NoUplink)?;
        match uplink.children.contains_key(&number) {
            true => Err(NotAdded::InUse),
            false if uplink.children.len() >= MAX_CHILDREN => Err(NotAdded::Full),
            false => Ok(()),
        }
    }

    /// Adds a container that [`check_child`](Self::check_child) has allowed.
    pub(super) fn add_child(&mut self, vm: PartitionKey, number: ChildId, partition: PartitionKey) {
        if let Some(uplink) = self.by_vm.get_mut(&vm) {
            uplink.children.insert(number, partition);
            self.children.insert(partition, (vm, number));
        }
    }

    /// Removes a container.
    pub(super) fn remove_child(
        &mut self,
        vm: PartitionKey,
        number: ChildId,
    ) -> Option<PartitionKey> {
        let child = self.by_vm.get_mut(&vm)?.children.remove(&number)?;
        self.children.remove(&child);
        Some(child)
    }

    /// The partition of a VM's container. 0 is the VM itself.
    pub(super) fn partition(&self, vm: PartitionKey, number: ChildId) -> Option<PartitionKey> {
        match number {
            ChildId::MACHINE => Some(vm),
            number => self.by_vm.get(&vm)?.children.get(&number).copied(),
        }
    }

    /// The number of an announced container in its VM.
    pub(super) fn number(&self, partition: PartitionKey) -> Option<ChildId> {
        self.children.get(&partition).map(|(_, number)| *number)
    }

    /// Checks that a guest may have one more connect to the host with this number.
    pub(super) fn check_request(&self, vm: PartitionKey, request: Request) -> Result<(), NotAdded> {
        let uplink = self.by_vm.get(&vm).ok_or(NotAdded::NoUplink)?;
        let mut requests = uplink.ports.values().map(|expected| expected.request);
        match requests.any(|other| other == request) {
            true => Err(NotAdded::InUse),
            false if uplink.ports.len() >= MAX_PENDING => Err(NotAdded::Full),
            false => Ok(()),
        }
    }

    /// Expects a stream of a guest at this port, once.
    ///
    /// # Errors
    ///
    /// [`NotAdded::InUse`] if another connect has the port.
    pub(super) fn expect(
        &mut self,
        vm: PartitionKey,
        port: u32,
        expected: ExpectedConnect,
    ) -> Result<(), NotAdded> {
        let uplink = self.by_vm.get_mut(&vm).ok_or(NotAdded::NoUplink)?;
        if uplink.ports.contains_key(&port) {
            return Err(NotAdded::InUse);
        }
        self.deadlines.insert((expected.deadline, vm, port));
        uplink.ports.insert(port, expected);
        Ok(())
    }

    /// The connect that was allowed to this port, which is used up.
    pub(super) fn take_expected(&mut self, vm: PartitionKey, port: u32) -> Option<ExpectedConnect> {
        let expected = self.by_vm.get_mut(&vm)?.ports.remove(&port)?;
        self.deadlines.remove(&(expected.deadline, vm, port));
        Some(expected)
    }

    /// Whether a stream of this guest is expected at this port.
    pub(super) fn expects(&self, vm: PartitionKey, port: u32) -> bool {
        let uplink = self.by_vm.get(&vm);
        uplink.is_some_and(|uplink| uplink.ports.contains_key(&port))
    }

    /// The ports at which streams of a container are expected.
    pub(super) fn ports_of(&self, vm: PartitionKey, from: PartitionKey) -> Vec<u32> {
        let ports = self.by_vm.get(&vm).into_iter().flat_map(|up| &up.ports);
        let of_container = ports.filter(|(_, expected)| expected.from == from);
        of_container.map(|(port, _)| *port).collect()
    }

    /// The port of a guest's connect.
    pub(super) fn port_of(&self, vm: PartitionKey, request: Request) -> Option<u32> {
        let mut ports = self.by_vm.get(&vm)?.ports.iter();
        let found = ports.find(|(_, expected)| expected.request == request);
        found.map(|(port, _)| *port)
    }

    /// When [`expired`](Self::expired) has one.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, ..)| *at)
    }

    /// A port to which its guest has not connected in time. The caller takes it.
    pub(super) fn expired(&self, now: Instant) -> Option<(PartitionKey, u32)> {
        let (at, vm, port) = self.deadlines.first()?;
        (*at <= now).then_some((*vm, *port))
    }

    /// Gives a connect to a guest a number.
    pub(super) fn begin_incoming(
        &mut self,
        vm: PartitionKey,
        connection: ConnectionId,
    ) -> Result<Request, NotAdded> {
        let uplink = self.by_vm.get_mut(&vm).ok_or(NotAdded::NoUplink)?;
        if uplink.incoming.len() >= MAX_PENDING {
            return Err(NotAdded::Full);
        }
        let request = uplink.next_request();
        uplink.incoming.insert(request, connection);
        self.waiting += 1;
        Ok(request)
    }

    /// The connect to a guest with this number, which the guest has answered or which has ended.
    pub(super) fn take_incoming(
        &mut self,
        vm: PartitionKey,
        request: Request,
    ) -> Option<ConnectionId> {
        let taken = self.by_vm.get_mut(&vm)?.incoming.remove(&request)?;
        self.waiting -= 1;
        Some(taken)
    }

    /// The connects to guests that are not answered.
    pub(super) fn all_incoming(&self) -> Vec<ConnectionId> {
        let all = self.by_vm.values().flat_map(|uplink| &uplink.incoming);
        all.map(|(_, connection)| *connection).collect()
    }

    /// Whether somebody waits for a guest: a connect or a question of a process.
    pub(super) fn has_waiting(&self) -> bool {
        self.waiting > 0 || self.asking > 0
    }

    /// Whether a process waits for the answer to a question.
    pub(super) fn is_asked(&self) -> bool {
        self.asking > 0
    }

    /// Gives a question to a guest a number.
    pub(super) fn begin_explanation(
        &mut self,
        vm: PartitionKey,
        asker: Asker,
    ) -> Result<Request, (NotAdded, Asker)> {
        let Some(uplink) = self.by_vm.get_mut(&vm) else {
            return Err((NotAdded::NoUplink, asker));
        };
        if uplink.explanations.len() >= MAX_PENDING {
            return Err((NotAdded::Full, asker));
        }
        self.asking += usize::from(asker.is_process());
        let request = uplink.next_request();
        uplink.explanations.insert(request, asker);
        Ok(request)
    }

    /// The questions of processes whose time has passed.
    pub(super) fn expired_explanations(&self, now: Instant) -> Vec<(PartitionKey, Request)> {
        let all = self.by_vm.iter().flat_map(|(vm, uplink)| {
            let due = uplink
                .explanations
                .iter()
                .filter(move |(_, asker)| match asker {
                    Asker::Process(process) => process.deadline <= now,
                    Asker::Call(_) => false,
                });
            due.map(|(request, _)| (*vm, *request))
        });
        all.collect()
    }

    /// Who asked the question with this number, which the guest has answered or which is given up.
    pub(super) fn take_explanation(&mut self, vm: PartitionKey, request: Request) -> Option<Asker> {
        let asker = self.by_vm.get_mut(&vm)?.explanations.remove(&request)?;
        self.asking -= usize::from(asker.is_process());
        Some(asker)
    }
}

impl Asker {
    fn is_process(&self) -> bool {
        matches!(self, Self::Process(_))
    }
}

impl Uplink {
    /// Who waits for answers of the guest.
    pub(super) fn into_askers(self) -> impl Iterator<Item = Asker> {
        self.explanations.into_values()
    }

    fn next_request(&mut self) -> Request {
        self.last_request += 1;
        Request(self.last_request)
    }

    /// Whether the guest can have received a request with this number.
    pub(super) fn has_asked(&self, request: Request) -> bool {
        (1..=self.last_request).contains(&request.0)
    }

    /// The containers, by number.
    pub(super) fn children(&self) -> impl ExactSizeIterator<Item = ChildId> {
        self.children.keys().copied()
    }

    /// The ports that the guest may connect to once.
    pub(super) fn ports(&self) -> impl Iterator<Item = u32> {
        self.ports.keys().copied()
    }

    /// The connects to the guest that it has not answered.
    pub(super) fn incoming(&self) -> impl Iterator<Item = ConnectionId> {
        self.incoming.values().copied()
    }
}
