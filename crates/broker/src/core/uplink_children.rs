//! The containers that brokers in guests announce: partitions of the host as long as their uplink lasts.

use std::time::Instant;

use hvsock_address::{PartitionName, VmId};
use hvsock_control::{AuditCategory, AuditOutcome, AuditRecord};
use hvsock_endpoint::Refused;
use hvsock_endpoint::uplink::{Announce, Announced, ChildId, ChildState, HostFrame};
use hvsock_fabric::{PartitionKey, PartitionKind, PartitionSpec, PartitionState, Refusal};

use super::labels::partition_label;
use super::state::Core;
use super::uplinks::NotAdded;
use crate::model::{self, EventKind};
use crate::uplink::SessionEnd;

/// One in so many partitions may be a container in a VM.
const CHILDREN_SHARE: usize = 2;

impl Core {
    /// Adds a container that the broker in a VM announces, or refuses it.
    pub(super) fn child_announced(
        &mut self,
        vm: PartitionKey,
        announce: &Announce,
    ) -> Result<(), SessionEnd> {
        let number = announce.child;
        let added = match self.uplinks.check_child(vm, number) {
            Ok(()) => self.add_child(vm, announce),
            Err(NotAdded::InUse) => {
                let what = format!("ANNOUNCE of container {} twice", number.0);
                return Err(SessionEnd::violation(what));
            }
            Err(NotAdded::Full) => Err(limit("containers of one virtual machine")),
            Err(NotAdded::NoUplink) => return Ok(()),
        };
        let answer = match added {
            Ok((id, name)) => Announced {
                child: number,
                id,
                answer: Refused {
                    code: 0,
                    errno: 0,
                    detail: name.to_string(),
                },
            },
            Err(NotAnnounced { refusal, text }) => Announced {
                child: number,
                id: VmId::ZERO,
                answer: Refused {
                    code: refusal.code(),
                    errno: refusal.errno().unsigned_abs(),
                    detail: text,
                },
            },
        };
        self.send_up(vm, HostFrame::Announced(answer));
        Ok(())
    }

    fn add_child(
        &mut self,
        vm: PartitionKey,
        announce: &Announce,
    ) -> Result<(VmId, PartitionName), NotAnnounced> {
        let most = self.fabric.limits().partitions / CHILDREN_SHARE;
        if self.uplinks.children_count() >= most {
            return Err(limit("containers in virtual machines"));
        }
        let machine = self.fabric.partition(vm);
        let machine = machine.ok_or_else(|| NotAnnounced {
            text: Refusal::PartitionOff.to_string(),
            refusal: Refusal::PartitionOff,
        })?;
        let name = PartitionName::unnested(announce.name.as_str())
            .and_then(|name| PartitionName::nested(machine.name(), &name))
            .map_err(|error| NotAnnounced {
                refusal: Refusal::AddressNotAvailable,
                text: error.to_string(),
            })?;
        let id = VmId::of_nested(machine.vm_id(), announce.id);
        let state = state_of(announce.state);
        let spec = PartitionSpec {
            kind: PartitionKind::Container,
            name: name.clone(),
            vm_id: id,
            groups: Vec::new(),
            state,
        };
        let partition = self.fabric.add_partition(vm, spec);
        let partition = partition.map_err(|error| NotAnnounced {
            refusal: Refusal::AddressInUse,
            text: error.to_string(),
        })?;
        self.uplinks.add_child(vm, announce.child, partition);
        self.assign_cid(partition);
        self.apply_effects();
        self.audit_child(vm, "announce", name.as_str());
        self.telemetry.publish(|| EventKind::PartitionAdded {
            partition: name.to_string(),
        });
        Ok((id, name))
    }

    /// Records the state of a container as its broker says. A container that the host has refused has none.
    pub(super) fn child_state(&mut self, vm: PartitionKey, number: ChildId, state: ChildState) {
        let state = state_of(state);
        let partition = self.uplinks.partition(vm, number).filter(|key| *key != vm);
        let Some(partition) = partition else {
            return;
        };
        let found = self.fabric.partition(partition);
        if found.is_some_and(|found| found.state() != state) {
            // The call cannot fail: an announced container has a partition.
            let _ = self.change_state(partition, state);
        }
    }

    /// Removes a container that its broker has withdrawn, and resets its connections.
    pub(super) fn child_withdrawn(&mut self, vm: PartitionKey, number: ChildId) {
        // While it has its number, the guest can be told to give up what waits for it.
        let Some(partition) = self.uplinks.partition(vm, number).filter(|key| *key != vm) else {
            return;
        };
        let name = partition_label(&self.fabric, partition);
        // Connections are closed first, so that their ends receive the reason.
        let _ = self.fabric.set_state(partition, PartitionState::Off);
        self.apply_effects();
        self.liveness
            .set_state(partition, model::PartitionState::Off, Instant::now());
        let expected: Vec<u32> = self.uplinks.ports_of(vm, partition);
        for port in expected {
            self.forget_expected(vm, port);
        }
        self.uplinks.remove_child(vm, number);
        self.cids.remove(partition);
        let _ = self.fabric.remove_partition(partition);
        self.apply_effects();
        self.audit_child(vm, "withdraw", &name);
        self.telemetry
            .publish(|| EventKind::PartitionRemoved { partition: name });
    }

    fn audit_child(&mut self, vm: PartitionKey, action: &str, name: &str) {
        let record = AuditRecord {
            category: AuditCategory::Change,
            action: action.into(),
            outcome: AuditOutcome::Allowed,
            target: Some(name.to_owned()),
            ..AuditRecord::default()
        };
        self.audit_of_guest(vm, record);
    }
}

/// Why a container is not announced.
struct NotAnnounced {
    refusal: Refusal,
    text: String,
}

fn limit(which: &str) -> NotAnnounced {
    let which = which.to_owned();
    let refusal = Refusal::LimitReached { which };
    NotAnnounced {
        text: refusal.to_string(),
        refusal,
    }
}

/// The state of a partition whose broker says that it is in this state.
fn state_of(state: ChildState) -> PartitionState {
    match state {
        ChildState::Defined => PartitionState::Defined,
        ChildState::Running => PartitionState::Running,
        ChildState::Paused => PartitionState::Paused,
        ChildState::Exited => PartitionState::Exited,
        ChildState::Unknown => PartitionState::Unknown,
    }
}
