//! What the core records in the audit: connects, listens and leases of processes and guests, ends of
//! connections, edits of files, and changes that the control thread reports.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hvsock_address::{ServiceId, SockAddrHv, VmId};
use hvsock_control::{
    AuditActor, AuditCategory, AuditEnd, AuditFilter, AuditMetrics, AuditOutcome, AuditRecord,
    Claim,
};
use hvsock_fabric::{ConnectionId, Partition, PartitionKey, PartitionKind, Refusal};
use hvsock_registry::Principal;
use hvsock_registry::store::{Change, Entry, Origin};

use super::connections::EndRecord;
use super::labels::{partition_label, service_label};
use super::state::Core;
use crate::audit::{MAX_TEXT, Source, claimed_result, visible};
use crate::callers::Caller;
use crate::process;

/// The actions of the records of an arena, which has a record beside those of its connections.
pub(super) const GRANT: &str = "grant";
const GRANT_ENDED: &str = "grant_ended";

/// A connection that has ended.
pub(super) struct EndedConnection<'a> {
    /// What the connecting process says about it.
    pub(super) result: Option<&'a str>,
    pub(super) duration: Duration,
    /// From the connecting end, and from the accepting end, if they are counted.
    pub(super) bytes: Option<[u64; 2]>,
}

/// Most edits of files that get a record of their own at once.
const MAX_EDITS: usize = 64;

impl Core {
    /// The records that a filter selects, oldest first.
    pub(crate) fn audit_records(&self, filter: &AuditFilter) -> Vec<Arc<AuditRecord>> {
        self.audit.select(filter)
    }

    /// How many records there were.
    pub(crate) fn audit_metrics(&self) -> AuditMetrics {
        self.audit.metrics()
    }

    /// Adds a record and publishes it.
    fn append_record(&mut self, record: AuditRecord) -> Arc<AuditRecord> {
        let record = self.audit.append(record);
        let own = partition_label(&self.fabric, self.fabric.root());
        self.telemetry.publish_record(&record, &own);
        record
    }

    /// Records a change that `caller` made, or tried to, by the control API. Only root's and the
    /// broker's user's changes are not limited in number.
    pub(crate) fn record_change(&mut self, caller: Caller, operator: bool, record: AuditRecord) {
        let root = self.fabric.root();
        let source = self.audit_source(root, caller);
        let left_out = match operator {
            true => Some(0),
            false => self.audit.admit(source, record.category, record.outcome),
        };
        let Some(left_out) = left_out else {
            return;
        };
        let actor = Some(self.actor(root, caller));
        self.append_record(AuditRecord {
            actor,
            left_out,
            ..record
        });
    }

    /// Records an established connection between partitions. Returns the record, if there is one: then
    /// its end is to be recorded, too.
    pub(super) fn audit_connected(
        &mut self,
        action: &str,
        id: ConnectionId,
        service: ServiceId,
        from: EndRecord,
        target: PartitionKey,
        claim: Option<&Claim>,
    ) -> Option<Arc<AuditRecord>> {
        let EndRecord { partition, caller } = from;
        if partition == target {
            return None;
        }
        let acts_in_child = partition == self.fabric.root();
        let category = self.audit.category(service, acts_in_child);
        let source = self.audit_source(partition, caller);
        let outcome = AuditOutcome::Allowed;
        // What an operator does in a guest is never left out.
        let operator = partition == self.fabric.root()
            && category == AuditCategory::Guest
            && self.is_operator(caller.uid);
        let left_out = match operator {
            true => Some(0),
            false => self.audit.admit(source, category, outcome),
        };
        let left_out = left_out?;
        let actor = self.actor(partition, caller);
        Some(self.append_record(AuditRecord {
            category,
            action: action.into(),
            outcome,
            actor: Some(actor),
            service: Some(service_label(&self.fabric, service)),
            target: Some(partition_label(&self.fabric, target)),
            connection: Some(id.as_u64()),
            claim: claim.cloned(),
            left_out,
            ..AuditRecord::default()
        }))
    }

    /// Records the end of a connection whose beginning was recorded. Names are those of the beginning: the
    /// partition, the service and the process may be gone.
    pub(super) fn audit_closed(
        &mut self,
        began: &AuditRecord,
        end: &EndedConnection<'_>,
        reason: Option<&Refusal>,
    ) {
        let AuditRecord {
            category,
            ref actor,
            ref service,
            ref target,
            connection,
            ..
        } = *began;
        let mut claim = began.claim.clone();
        if let Some(result) = end.result {
            claim.get_or_insert_default().result = Some(result.to_owned());
        }
        let action = match began.action.as_str() {
            GRANT => GRANT_ENDED,
            _ => "disconnect",
        };
        self.append_record(AuditRecord {
            category,
            action: action.into(),
            outcome: AuditOutcome::Ended,
            reason: reason.map(|reason| visible(&reason.to_string(), MAX_TEXT)),
            actor: actor.clone(),
            service: service.clone(),
            target: target.clone(),
            connection,
            claim,
            ended: Some(AuditEnd {
                duration_ms: u64::try_from(end.duration.as_millis()).unwrap_or(u64::MAX),
                bytes_sent: end.bytes.map(|bytes| bytes[0]),
                bytes_received: end.bytes.map(|bytes| bytes[1]),
            }),
            ..AuditRecord::default()
        });
    }

    /// Counts connections that were opened and closed between two scans of an arena. The next record of
    /// the same source has their number.
    pub(super) fn audit_unseen(
        &mut self,
        service: ServiceId,
        from: EndRecord,
        target: PartitionKey,
        unseen: u64,
    ) {
        if unseen > 0 && from.partition != target {
            let acts_in_child = from.partition == self.fabric.root();
            let category = self.audit.category(service, acts_in_child);
            let source = self.audit_source(from.partition, from.caller);
            self.audit.leave_out(source, category, unseen);
        }
    }

    /// Records a refused connect or listen.
    pub(super) fn audit_refused(
        &mut self,
        action: &str,
        (partition, caller): (PartitionKey, Caller),
        address: SockAddrHv,
        claim: Option<&Claim>,
        refusal: &Refusal,
    ) {
        let child = self.fabric.by_vm_id(address.vm).is_some();
        let acts_in_child = action == "connect" && partition == self.fabric.root() && child;
        let category = self.audit.category(address.service, acts_in_child);
        let service = service_label(&self.fabric, address.service);
        let target = self.target_label(partition, address.vm);
        self.audit_refusal(
            AuditRecord {
                category,
                action: action.into(),
                service: Some(service),
                target: Some(target),
                claim: claim.cloned(),
                ..AuditRecord::default()
            },
            (partition, caller),
            refusal,
        );
    }

    /// Completes and adds the record of a change that the broker in a guest has made.
    pub(super) fn audit_of_guest(&mut self, vm: PartitionKey, record: AuditRecord) {
        let source = self.audit_source(vm, Caller::UNKNOWN);
        let Some(left_out) = self.audit.admit(source, record.category, record.outcome) else {
            return;
        };
        let actor = self.actor(vm, Caller::UNKNOWN);
        self.append_record(AuditRecord {
            actor: Some(actor),
            left_out,
            ..record
        });
    }

    /// Completes and adds the record of something that was refused.
    pub(super) fn audit_refusal(
        &mut self,
        record: AuditRecord,
        (partition, caller): (PartitionKey, Caller),
        refusal: &Refusal,
    ) {
        let source = self.audit_source(partition, caller);
        let outcome = AuditOutcome::Refused;
        let Some(left_out) = self.audit.admit(source, record.category, outcome) else {
            return;
        };
        let actor = self.actor(partition, caller);
        self.append_record(AuditRecord {
            outcome,
            reason: Some(visible(&refusal.to_string(), MAX_TEXT)),
            actor: Some(actor),
            left_out,
            ..record
        });
    }

    /// Records a listener for other partitions.
    pub(super) fn audit_listening(
        &mut self,
        id: u64,
        (partition, caller): (PartitionKey, Caller),
        address: SockAddrHv,
    ) {
        if address.vm == VmId::LOOPBACK {
            return;
        }
        let category = AuditCategory::Connection;
        let source = self.audit_source(partition, caller);
        let outcome = AuditOutcome::Allowed;
        let Some(left_out) = self.audit.admit(source, category, outcome) else {
            return;
        };
        let actor = self.actor(partition, caller);
        self.append_record(AuditRecord {
            category,
            action: "listen".into(),
            outcome,
            actor: Some(actor),
            service: Some(service_label(&self.fabric, address.service)),
            target: Some(self.target_label(partition, address.vm)),
            connection: Some(id),
            left_out,
            ..AuditRecord::default()
        });
    }

    /// Records a granted lease.
    pub(super) fn audit_lease(
        &mut self,
        (partition, caller): (PartitionKey, Caller),
        service: &str,
    ) {
        let actor = self.actor(partition, caller);
        // Only root and the broker's user may take one.
        self.append_record(AuditRecord {
            category: AuditCategory::Change,
            action: "lease".into(),
            actor: Some(actor),
            service: Some(service.to_owned()),
            ..AuditRecord::default()
        });
    }

    /// Records what a process says about the end of its own connection: with that end, or in a record of
    /// its own if the connection has ended already. Returns what is kept; `None` if the process has and
    /// had no such connection.
    pub(crate) fn claim_result(&mut self, id: u64, caller: Caller, result: &str) -> Option<String> {
        let root = self.fabric.root();
        let result = claimed_result(result);
        if let Some(record) = self.connections.get_mut(ConnectionId::from_u64(id)) {
            let EndRecord {
                partition,
                caller: owner,
            } = record.from;
            if partition != root || (owner.pid, owner.uid) != (caller.pid, caller.uid) {
                return None;
            }
            record.claimed_result = Some(result.clone());
            return Some(result);
        }
        let own = self.actor_ids(root, caller);
        let AuditRecord {
            category,
            actor,
            service,
            target,
            connection,
            mut claim,
            ..
        } = self.audit.connect_of(id, &own)?;
        claim.get_or_insert_default().result = Some(result.clone());
        let source = self.audit_source(root, caller);
        let outcome = AuditOutcome::Ended;
        if let Some(left_out) = self.audit.admit(source, category, outcome) {
            self.append_record(AuditRecord {
                category,
                action: "result".into(),
                outcome,
                actor,
                service,
                target,
                connection,
                claim,
                left_out,
                ..AuditRecord::default()
            });
        }
        Some(result)
    }

    /// Records changes of the store of registrations that were not made by this broker.
    pub(crate) fn audit_edits(&mut self, changes: &[Change]) {
        for change in self.first_edits(changes) {
            let (what, service, path) = match change {
                Change::Added(entry) => ("added", Some(&entry.registration), stored_path(entry)),
                Change::Updated(entry) => {
                    ("changed", Some(&entry.registration), stored_path(entry))
                }
                Change::Removed(id) => {
                    self.audit_edit(
                        "removed",
                        Some(service_label(&self.fabric, *id)),
                        None,
                        None,
                    );
                    continue;
                }
                Change::Defaults(_) => ("the defaults changed", None, None),
                Change::Broken(problem) => {
                    let reason = Some(problem.to_string());
                    self.audit_edit("not valid", None, Some(&problem.path), reason);
                    continue;
                }
                Change::Repaired(path) => ("valid again", None, Some(path.as_path())),
            };
            let service = service.map(|registration| registration.name.to_string());
            self.audit_edit(what, service, path, None);
        }
    }

    /// The edits that get a record of their own. All others get one together: a configuration manager
    /// may change any number of files at once.
    pub(super) fn first_edits<'a, T>(&mut self, edits: &'a [T]) -> &'a [T] {
        let (first, rest) = edits.split_at(edits.len().min(MAX_EDITS));
        if !rest.is_empty() {
            let what = format!("{} further files changed at the same time", rest.len());
            self.audit_edit(&what, None, None, None);
        }
        first
    }

    /// Records an edit of a file. Who made it is unknown: the owner of the file is a hint only.
    pub(super) fn audit_edit(
        &mut self,
        what: &str,
        service: Option<String>,
        path: Option<&Path>,
        reason: Option<String>,
    ) {
        let file = path.map(|path| path.display().to_string());
        let detail = match file {
            Some(file) => format!("{what}: {file}"),
            None => what.to_owned(),
        };
        self.append_record(AuditRecord {
            category: AuditCategory::Change,
            action: "edit_file".into(),
            outcome: match reason {
                Some(_) => AuditOutcome::Failed,
                None => AuditOutcome::Allowed,
            },
            reason: reason.map(|reason| visible(&reason, MAX_TEXT)),
            service,
            detail: Some(visible(&detail, MAX_TEXT)),
            ..AuditRecord::default()
        });
    }

    /// Whether this is root or the broker's own user.
    fn is_operator(&self, uid: u32) -> bool {
        let principal = Principal {
            uid,
            ..Principal::default()
        };
        self.fabric.operators().check(&principal).is_ok()
    }

    /// Who is charged for a record: a user of the host, or a partition as a whole, which can have any
    /// number of users.
    fn audit_source(&self, partition: PartitionKey, caller: Caller) -> Source {
        Source {
            // A guest can have any number of containers.
            partition: self.carrier(partition).as_u64(),
            uid: match partition == self.fabric.root() {
                true => caller.uid,
                false => Caller::UNKNOWN.uid,
            },
        }
    }

    /// A process, with its program.
    fn actor(&mut self, partition: PartitionKey, caller: Caller) -> AuditActor {
        let actor = self.actor_ids(partition, caller);
        let program = actor.pid.and_then(process::program);
        AuditActor {
            program: program.map(|program| visible(&program, MAX_TEXT)),
            ..actor
        }
    }

    /// A process by its numbers. Those of a guest mean nothing here.
    fn actor_ids(&mut self, key: PartitionKey, caller: Caller) -> AuditActor {
        let partition = partition_label(&self.fabric, key);
        let is_own = key == self.fabric.root();
        let found = self.fabric.partition(key);
        let in_guest =
            self.is_nested(key) || found.is_none_or(|found| found.kind() == PartitionKind::Vm);
        if !is_own && in_guest {
            return AuditActor {
                partition,
                ..AuditActor::default()
            };
        }
        let user = match is_own {
            true => self.callers.user(caller.uid).as_deref().map(str::to_owned),
            false => None,
        };
        AuditActor {
            partition,
            user,
            uid: Some(caller.uid).filter(|uid| *uid != Caller::UNKNOWN.uid),
            gid: Some(caller.gid).filter(|gid| *gid != Caller::UNKNOWN.gid),
            pid: Some(caller.pid).filter(|pid| *pid != 0),
            program: None,
        }
    }

    /// The partition that an address of a request from `partition` leads to, or the address.
    fn target_label(&self, partition: PartitionKey, vm: VmId) -> String {
        let own = self.fabric.partition(partition);
        let key = match vm {
            VmId::LOOPBACK => Some(partition),
            VmId::PARENT | VmId::SILOHOST => own.and_then(Partition::parent),
            vm => self.fabric.by_vm_id(vm),
        };
        match (key, vm.well_known_name()) {
            (Some(key), _) => partition_label(&self.fabric, key),
            (None, Some(word)) => word.to_owned(),
            (None, None) => vm.to_string(),
        }
    }

    /// The category of a request that named an unknown service or partition.
    pub(super) fn category_of_named(&self, service: Option<ServiceId>) -> AuditCategory {
        match service {
            Some(service) => self.audit.category(service, true),
            None => AuditCategory::Connection,
        }
    }
}

fn stored_path(entry: &Entry) -> Option<&Path> {
    match &entry.origin {
        Origin::Stored(path) => Some(path),
        Origin::BuiltIn | Origin::Lease => None,
    }
}
