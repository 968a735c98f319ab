//! A VM of the host's side as a value, and the freeze before it. [`crate::handover::snapshot`] describes its format.
//!
//! The ports belong to all VMs of a network namespace; they are in the value of the VM with the lowest CID. Connects
//! to guests without an answer are in none: the core makes them anew.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use hvsock_address::ServiceId;
use hvsock_fabric::PartitionState;
use mio::unix::SourceFd;
use mio::{Interest, Token};
use serde::{Deserialize, Serialize};

use super::super::expected::MAX_EXPECTED;
use super::super::ports::MAX_PORTS;
use super::super::sockets::Sockets;
use super::{FIRST_GUEST, Freeze, KernelHost, Shared, Vm};
use crate::guest_link::{EventSender, OfferedService};
use crate::handover::snapshot::{check_limit, check_version, ensure, read_version};
use crate::handover::{Exports, FdIndex, HandoverError, Imports};

/// The version of [`VmSnapshot`] that this release writes.
const KERNEL_VM_SNAPSHOT_VERSION: u32 = 1;

/// The most services of a VM in a snapshot: a registry has less.
const MAX_SERVICES: usize = 1 << 16;

/// A VM that the kernel serves.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::kernel_vsock) struct VmSnapshot {
    #[serde(deserialize_with = "read_version::<_, KERNEL_VM_SNAPSHOT_VERSION>")]
    version: u32,
    cid: u32,
    /// The network namespace of the VMM, if it is not the broker's.
    #[serde(default)]
    namespace: Option<FdIndex>,
    /// What the VM's manager has said of it.
    #[serde(default)]
    told: Option<StateSnapshot>,
    services: Vec<ServiceSnapshot>,
    /// The ports at which the guest is expected once.
    #[serde(default)]
    expected: Vec<PortSnapshot>,
    /// The ports of which an operator was told that they cannot be had.
    #[serde(default)]
    reported: Vec<u32>,
    /// The kernel serves no virtual machines.
    #[serde(default)]
    is_unserved: bool,
    next_request: u64,
    /// The ports of services, of all VMs in the namespace.
    #[serde(default)]
    ports: Vec<PortSnapshot>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PortSnapshot {
    port: u32,
    socket: FdIndex,
    listens: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct ServiceSnapshot {
    service: String,
    #[serde(default)]
    port: Option<u32>,
    listening: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StateSnapshot {
    Unknown,
    Running,
    Paused,
    Off,
}

impl VmSnapshot {
    /// Takes the descriptor of the network namespace.
    ///
    /// # Errors
    ///
    /// If it is missing.
    pub(in crate::kernel_vsock) fn namespace(
        &self,
        imports: &mut Imports,
    ) -> Result<Option<OwnedFd>, HandoverError> {
        self.namespace.map(|index| imports.fd(index)).transpose()
    }

    /// What the VM's manager has said of it.
    pub(in crate::kernel_vsock) fn told(&self) -> Option<PartitionState> {
        self.told.map(|told| match told {
            StateSnapshot::Unknown => PartitionState::Unknown,
            StateSnapshot::Running => PartitionState::Running,
            StateSnapshot::Paused => PartitionState::Paused,
            StateSnapshot::Off => PartitionState::Off,
        })
    }
}

impl KernelHost {
    /// Starts a thread that does nothing until [`thaw`](Self::thaw), for the state of another process.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub(in crate::kernel_vsock) fn start_dormant(
        sockets: Box<dyn Sockets>,
    ) -> std::io::Result<Self> {
        let freeze = Freeze {
            is_wanted: true,
            is_reached: false,
            is_dormant: true,
        };
        Self::start_in(sockets, freeze)
    }

    /// Whether a guest is expected at a port.
    #[cfg(test)]
    pub(in crate::kernel_vsock) fn expects(&self, port: u32) -> bool {
        self.shared.lock().expected.contains(port)
    }

    /// Asks the thread to finish what it is at, and to do nothing from then on. The core's calls go on: the ports
    /// are as it wants them.
    pub(in crate::kernel_vsock) fn freeze(&self) {
        self.shared.lock().freeze.is_wanted = true;
        self.shared.wake();
    }

    /// Waits until the thread is frozen.
    ///
    /// # Errors
    ///
    /// If that takes until the deadline.
    pub(in crate::kernel_vsock) fn wait_frozen(
        &self,
        deadline: Instant,
    ) -> Result<(), HandoverError> {
        let begun = Instant::now();
        let mut state = self.shared.lock();
        while !state.freeze.is_reached {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(HandoverError::TimedOut {
                    what: "a turn of the thread of the kernel's vsock sockets".into(),
                    limit: deadline.saturating_duration_since(begun),
                });
            }
            let waited = self.shared.frozen.wait_timeout(state, left);
            state = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
        Ok(())
    }

    /// Has the thread go on.
    pub(in crate::kernel_vsock) fn thaw(&self) {
        let mut state = self.shared.lock();
        let was_dormant = state.freeze.is_dormant;
        state.freeze = Freeze {
            is_reached: state.freeze.is_reached,
            ..Freeze::default()
        };
        if was_dormant {
            self.shared.update_ports(&mut state);
            let state = &mut *state;
            // What was in the way may be so no longer, and the table has not known of it.
            for port in state.vms.values().flat_map(|vm| &vm.reported) {
                state.ports.judge_again(*port);
            }
        }
        self.shared.frozen.notify_all();
        self.shared.wake();
    }

    /// A VM as a value, while the thread is frozen. `told` is what its manager has said.
    ///
    /// # Errors
    ///
    /// If a request of the guest is not answered, or a descriptor cannot be passed on.
    pub(in crate::kernel_vsock) fn snapshot(
        &self,
        cid: u32,
        told: Option<PartitionState>,
        exports: &mut Exports,
    ) -> Result<VmSnapshot, HandoverError> {
        let state = self.shared.lock();
        let unknown = || HandoverError::inconsistent("a link has no VM");
        let Vm {
            events: _,
            services,
            next_request,
            requests,
            dropped: _,
            reported,
            has_manager: _,
            is_unserved,
        } = state.vms.get(&cid).ok_or_else(unknown)?;
        let what = "a connect of the guest is not answered";
        ensure(requests.is_empty(), what)?;
        let services = services.iter().map(|service| {
            let OfferedService {
                service,
                port,
                listening,
            } = *service;
            ServiceSnapshot {
                service: service.to_string(),
                port,
                listening,
            }
        });
        let mut expected = Vec::new();
        for (port, listener) in state.expected.of(cid) {
            expected.push(PortSnapshot {
                port,
                socket: exports.fd(listener)?,
                listens: true,
            });
        }
        let mut ports = Vec::new();
        if state.vms.keys().next() == Some(&cid) {
            for (port, socket, listens) in state.ports.held() {
                ports.push(PortSnapshot {
                    port,
                    socket: exports.fd(socket)?,
                    listens,
                });
            }
        }
        let namespace = self.shared.sockets.namespace();
        Ok(VmSnapshot {
            version: KERNEL_VM_SNAPSHOT_VERSION,
            cid,
            namespace: namespace.map(|fd| exports.fd(fd)).transpose()?,
            told: told.map(|told| match told {
                PartitionState::Running => StateSnapshot::Running,
                PartitionState::Paused => StateSnapshot::Paused,
                PartitionState::Off => StateSnapshot::Off,
                _ => StateSnapshot::Unknown,
            }),
            services: services.collect(),
            expected,
            reported: reported.iter().copied().collect(),
            is_unserved: *is_unserved,
            next_request: *next_request,
            ports,
        })
    }

    /// Adds a VM of another process, whose settings say that it has this CID. Returns the CID.
    ///
    /// # Errors
    ///
    /// If the value is damaged, or is that of another VM.
    pub(in crate::kernel_vsock) fn resume(
        &self,
        snapshot: VmSnapshot,
        own_cid: Option<u32>,
        events: &EventSender,
        has_manager: bool,
        imports: &mut Imports,
    ) -> Result<u32, HandoverError> {
        let VmSnapshot {
            version,
            cid,
            // The caller has used both.
            namespace: _,
            told: _,
            services,
            expected,
            reported,
            is_unserved,
            next_request,
            ports,
        } = snapshot;
        check_version(version, KERNEL_VM_SNAPSHOT_VERSION)?;
        let is_own = own_cid == Some(cid) && cid >= FIRST_GUEST;
        ensure(is_own, "a VM has another CID than its link")?;
        check_limit("services", services.len(), MAX_SERVICES)?;
        check_limit("services", reported.len(), MAX_SERVICES)?;
        check_limit("ports", ports.len(), MAX_PORTS)?;
        let mut state = self.shared.lock();
        ensure(state.freeze.is_dormant, "a link comes too late")?;
        ensure(!state.vms.contains_key(&cid), "two VMs have one CID")?;
        let services: Result<Vec<_>, _> = services.into_iter().map(service).collect();
        let services = services?;
        for PortSnapshot {
            port,
            socket,
            listens,
        } in ports
        {
            let socket = self.shared.resume_port(port, socket, listens, imports)?;
            let is_new = state.ports.resume(port, socket, listens);
            ensure(is_new, "a port has two sockets")?;
        }
        for PortSnapshot {
            port,
            socket,
            listens,
        } in expected
        {
            let has_room = state.expected.has_room();
            check_limit("ports", MAX_EXPECTED + usize::from(!has_room), MAX_EXPECTED)?;
            ensure(
                listens,
                "a port at which a guest is expected does not listen",
            )?;
            let is_new = !state.expected.contains(port);
            ensure(is_new, "two guests are expected at one port")?;
            let socket = self.shared.resume_port(port, socket, listens, imports)?;
            state.expected.insert(cid, port, socket);
        }
        let vm = Vm {
            events: events.clone(),
            services,
            next_request,
            requests: std::collections::BTreeSet::new(),
            dropped: 0,
            reported: reported.into_iter().collect(),
            has_manager,
            is_unserved,
        };
        state.vms.insert(cid, vm);
        Ok(cid)
    }
}

impl Shared {
    /// Does nothing while the thread is to be frozen. Returns whether it was.
    pub(super) fn stay_frozen(&self) -> bool {
        let mut state = self.lock();
        let mut was_frozen = false;
        while state.freeze.is_wanted && !state.stopped {
            was_frozen = true;
            state.freeze.is_reached = true;
            self.frozen.notify_all();
            let waited = self.frozen.wait(state);
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        state.freeze.is_reached = false;
        was_frozen
    }

    /// The socket of a port, which is watched if it listens.
    fn resume_port(
        &self,
        port: u32,
        socket: FdIndex,
        listens: bool,
        imports: &mut Imports,
    ) -> Result<OwnedFd, HandoverError> {
        let socket = imports.fd(socket)?;
        let is_bound = self.sockets.port_of(&socket).is_ok_and(|own| own == port);
        ensure(is_bound, "a socket is bound to another port")?;
        let is_listening = rustix::net::sockopt::socket_acceptconn(&socket);
        let what = "a port does not listen that should, or the other way around";
        ensure(is_listening == Ok(listens), what)?;
        if listens {
            let fd = socket.as_raw_fd();
            let (mut source, token) = (SourceFd(&fd), Token(port as usize));
            let watched = self
                .registry
                .register(&mut source, token, Interest::READABLE);
            watched.map_err(HandoverError::io("watch a port"))?;
        }
        Ok(socket)
    }
}

fn service(snapshot: ServiceSnapshot) -> Result<OfferedService, HandoverError> {
    let ServiceSnapshot {
        service,
        port,
        listening,
    } = snapshot;
    let service: Result<ServiceId, _> = service.parse();
    let service = service.map_err(|_| HandoverError::inconsistent("a service has no id"))?;
    Ok(OfferedService {
        service,
        port,
        listening,
    })
}
