//! The snapshot of the sessions. [`crate::handover::snapshot`] describes its format.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use hvsock_address::ServiceId;
use hvsock_control::Claim;
use hvsock_endpoint::{HybridRequestReader, TextRequestReader};
use hvsock_fabric::{ListenerId, PartitionKey};
use serde::{Deserialize, Serialize};

use super::entry::{Entry, HybridEntry, TextEntry};
use super::session::{Role, Session};
use super::table::{MAX_IDLE_TIMEOUT, SessionLimits, Sessions};
use crate::callers::Caller;
use crate::handover::snapshot::{
    CallerSnapshot, Descriptors, SnapshotError, check_limit, check_version, ensure,
    nanoseconds_until, read_version, time_at,
};

/// The version of [`SessionsSnapshot`] that this release writes.
pub(crate) const SESSIONS_SNAPSHOT_VERSION: u32 = 1;

/// All sessions. Their indexes are not in it: they are assigned again, since they are positions in
/// epoll, which does not travel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionsSnapshot {
    #[serde(deserialize_with = "read_version::<_, SESSIONS_SNAPSHOT_VERSION>")]
    version: u32,
    /// The serial number of the newest session so far.
    last_serial: u64,
    /// In the order of their serial numbers.
    sessions: Vec<SessionSnapshot>,
    /// Serial numbers of those that wait for a turn, in the order of the turns.
    unfinished: Vec<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SessionSnapshot {
    serial: u64,
    descriptor: u32,
    partition: u64,
    caller: CallerSnapshot,
    connected_suspend: bool,
    /// Bytes.
    ring_size: u32,
    queries: u32,
    /// It has sent a request, which is handled again.
    #[serde(default, skip_serializing_if = "is_false")]
    waiting: bool,
    /// What the process says that its connection is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    claim: Option<Claim>,
    /// Of a process at a hybrid vsock socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hybrid: Option<HybridSnapshot>,
    /// What has arrived of the request of a process at the text protocol's socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<Vec<u8>>,
    /// And whether it has given a port only.
    #[serde(default, skip_serializing_if = "is_false")]
    by_port: bool,
    role: RoleSnapshot,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct HybridSnapshot {
    /// The VM's partition.
    vm: u64,
    /// What has arrived of the request.
    received: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RoleSnapshot {
    /// Until its deadline, in nanoseconds.
    Idle(i64),
    /// The listener's id.
    Listener(u64),
    Lease(ServiceId),
}

impl<D> Sessions<D> {
    /// The sessions as a value, with those whose requests are `waiting`, as idle ones. Appends their descriptors to
    /// `descriptors`.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Outstanding`] while a session is taken out.
    pub(crate) fn snapshot<'a>(
        &'a self,
        now: Instant,
        descriptors: &mut Vec<&'a D>,
        waiting: &[&'a Session<D>],
    ) -> Result<SessionsSnapshot, SnapshotError> {
        let Self {
            limits,
            slots,
            idle,
            unfinished,
            unfinished_open: _,
            last_serial,
        } = self;
        let mut present: Vec<_> = self.iter().map(|(_, session)| session).collect();
        if present.len() < slots.len() {
            let sessions = slots.len() - present.len();
            return Err(SnapshotError::Outstanding { sessions });
        }
        present.extend(waiting);
        present.sort_by_key(|session| session.serial);
        // Deadlines are in the order of the serial numbers.
        let mut deadlines = HashMap::with_capacity(waiting.len());
        let mut next = now + limits.idle_timeout;
        for session in present.iter().rev().filter(|session| session.is_idle()) {
            next = idle.deadline(session.serial).unwrap_or(next);
            deadlines.insert(session.serial, next);
        }
        let waiting: HashSet<u64> = waiting.iter().map(|session| session.serial).collect();
        let mut sessions = Vec::with_capacity(present.len());
        for session in present {
            let Session {
                socket,
                partition,
                caller,
                entry,
                connected_suspend,
                ring_size,
                claim,
                // A session in the table has no request that can be refused any more, or none yet.
                explains: _,
                serial,
                queries,
                queued: _,
                role,
                // Of a connect that waits, which is made again from its message.
                named: _,
                // They are with the requests that wait.
                attachment: _,
                on_behalf_of: _,
            } = session;
            let role = match *role {
                Role::Idle => {
                    let deadline = deadlines.get(serial).copied().unwrap_or(now);
                    RoleSnapshot::Idle(nanoseconds_until(deadline, now))
                }
                Role::Listener(id) => RoleSnapshot::Listener(id.as_u64()),
                Role::Lease(service) => RoleSnapshot::Lease(service),
            };
            let limit = u32::MAX as usize;
            let descriptor = u32::try_from(descriptors.len()).ok();
            sessions.push(SessionSnapshot {
                serial: *serial,
                descriptor: descriptor.ok_or(SnapshotError::LimitExceeded {
                    which: "descriptors",
                    found: descriptors.len(),
                    limit,
                })?,
                partition: partition.as_u64(),
                caller: (*caller).into(),
                connected_suspend: *connected_suspend,
                ring_size: *ring_size,
                queries: *queries,
                waiting: waiting.contains(serial),
                claim: claim.as_deref().cloned(),
                hybrid: match entry {
                    Entry::Endpoint | Entry::Text(_) => None,
                    Entry::Hybrid(HybridEntry { vm, request }) => Some(HybridSnapshot {
                        vm: vm.as_u64(),
                        received: match waiting.contains(serial) {
                            true => Vec::new(),
                            false => request.received().to_vec(),
                        },
                    }),
                },
                text: match entry {
                    Entry::Text(_) if waiting.contains(serial) => Some(Vec::new()),
                    Entry::Text(text) => Some(text.request.received().to_vec()),
                    Entry::Endpoint | Entry::Hybrid(_) => None,
                },
                by_port: matches!(entry, Entry::Text(TextEntry { by_port: true, .. })),
                role,
            });
            descriptors.push(socket);
        }
        let waits = |&&(serial, index): &&(u64, usize)| {
            let session = self.get(index);
            session.is_some_and(|session| session.serial == serial && session.queued)
        };
        let unfinished = unfinished.iter().filter(waits);
        Ok(SessionsSnapshot {
            version: SESSIONS_SNAPSHOT_VERSION,
            last_serial: *last_serial,
            sessions,
            unfinished: unfinished.map(|(serial, _)| *serial).collect(),
        })
    }

    /// The sessions of a snapshot, with their descriptors, which `own` charges to their partition and process. The
    /// caller watches them in epoll, and passes
    /// their indexes to the listeners and leases that they are ([`iter`](Self::iter)).
    ///
    /// # Errors
    ///
    /// [`SnapshotError::UnsupportedVersion`] for another version; [`SnapshotError::LimitExceeded`] if a
    /// partition has more idle sessions than slots; [`SnapshotError::Inconsistent`] for repeated serial
    /// numbers, descriptors or listeners, and for deadlines, turns or parts of requests that no run leads to.
    pub(crate) fn restore<F>(
        snapshot: SessionsSnapshot,
        limits: SessionLimits,
        descriptors: &mut Descriptors<F>,
        now: Instant,
        own: impl Fn(F, PartitionKey, Caller) -> D,
    ) -> Result<Self, SnapshotError> {
        let SessionsSnapshot {
            version,
            last_serial,
            sessions,
            unfinished,
        } = snapshot;
        check_version(version, SESSIONS_SNAPSHOT_VERSION)?;
        check_limit("sessions", sessions.len(), descriptors.len())?;
        ensure(
            last_serial <= u64::MAX / 2,
            "the serial numbers are used up",
        )?;
        let mut table = Self::new(limits);
        table.last_serial = last_serial;
        let latest = now + MAX_IDLE_TIMEOUT;
        let (mut previous, mut deadline) = (0, None);
        let (mut indexes, mut listeners) = (HashMap::new(), HashSet::new());
        let mut idle: HashMap<PartitionKey, usize> = HashMap::new();
        for session in sessions {
            let SessionSnapshot {
                serial,
                descriptor,
                partition,
                caller,
                connected_suspend,
                ring_size,
                queries,
                waiting,
                claim,
                hybrid,
                text,
                by_port,
                role,
            } = session;
            let in_order = serial > previous && serial <= last_serial;
            ensure(in_order, "the serial numbers are not in order")?;
            previous = serial;
            let partition = PartitionKey::from_u64(partition);
            let entry = match (hybrid, text) {
                (None, None) => Entry::Endpoint,
                (None, Some(received)) => {
                    let is_idle = matches!(role, RoleSnapshot::Idle(_));
                    ensure(is_idle, "a client of the text protocol is more than idle")?;
                    text_entry(&received, by_port)?
                }
                (Some(hybrid), _) => {
                    let is_idle = matches!(role, RoleSnapshot::Idle(_));
                    ensure(is_idle, "a hybrid vsock client is more than idle")?;
                    hybrid_entry(&hybrid)?
                }
            };
            let socket_of = match &entry {
                Entry::Endpoint | Entry::Text(_) => partition,
                Entry::Hybrid(hybrid) => hybrid.vm,
            };
            let (role, until) = match role {
                RoleSnapshot::Idle(left) => {
                    let until = time_at(left, now)?;
                    let in_order = Some(until) >= deadline && until <= latest;
                    ensure(in_order, "the deadlines are not in order")?;
                    deadline = Some(until);
                    // One that waits takes no slot: it leaves the table before any other comes.
                    if !waiting {
                        let count = idle.entry(socket_of).or_default();
                        *count += 1;
                        let slots = limits.idle_slots.max(1);
                        check_limit("idle sessions in one partition", *count, slots)?;
                    }
                    (Role::Idle, until)
                }
                RoleSnapshot::Listener(number) => {
                    let is_new = listeners.insert(number);
                    ensure(is_new, "two sessions are one listener")?;
                    (Role::Listener(ListenerId::from_u64(number)), now)
                }
                RoleSnapshot::Lease(service) => (Role::Lease(service), now),
            };
            let caller = Caller::from(caller);
            let session = Session {
                socket: own(descriptors.take(descriptor)?, partition, caller),
                partition,
                caller,
                entry,
                connected_suspend,
                ring_size,
                claim: claim.map(Arc::new),
                named: None,
                on_behalf_of: None,
                attachment: None,
                explains: None,
                serial,
                queries,
                queued: false,
                role,
            };
            indexes.insert(serial, table.insert_until(session, until));
        }
        for serial in unfinished {
            let index = indexes.remove(&serial);
            let index = index.ok_or(SnapshotError::Inconsistent {
                what: "a session that waits for a turn is missing or waits twice",
            })?;
            table.enqueue(index);
        }
        Ok(table)
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// A process at a socket of the text protocol that has sent a part of its request, at most.
fn text_entry(received: &[u8], by_port: bool) -> Result<Entry, SnapshotError> {
    let mut request = TextRequestReader::default();
    let read = request.read(received);
    let is_incomplete = matches!(read, Ok((count, None)) if count == received.len());
    ensure(is_incomplete, "a request is complete or none")?;
    Ok(Entry::Text(TextEntry { request, by_port }))
}

/// A process at a hybrid vsock socket that has sent a part of its request, at most.
fn hybrid_entry(hybrid: &HybridSnapshot) -> Result<Entry, SnapshotError> {
    let HybridSnapshot { vm, received } = hybrid;
    let mut request = HybridRequestReader::default();
    let is_part = request.read(received) == Ok((received.len(), None));
    ensure(is_part, "a part of a request cannot become one")?;
    let vm = PartitionKey::from_u64(*vm);
    Ok(Entry::Hybrid(HybridEntry { vm, request }))
}
