//! The snapshot of the offers. [`crate::handover::snapshot`] describes its format.

use std::collections::HashSet;

use hvsock_fabric::{ConnectionId, ListenerId};
use serde::{Deserialize, Serialize};

use super::{Offer, Offers};
use crate::core::in_flight::MessageKind;
use crate::handover::snapshot::{check_limit, check_version, ensure, read_version};
use crate::handover::{Exports, FdRange, HandoverError, Imports};

/// The version of [`OffersSnapshot`] that this release writes.
const OFFERS_SNAPSHOT_VERSION: u32 = 1;

/// The most descriptors of one offer.
const DESCRIPTORS: usize = hvsock_sys::message::MAX_DESCRIPTORS;

/// All offers. Those that were passed are in their listeners' sockets.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::core) struct OffersSnapshot {
    #[serde(deserialize_with = "read_version::<_, OFFERS_SNAPSHOT_VERSION>")]
    version: u32,
    /// In the order of their listeners.
    queues: Vec<QueueSnapshot>,
}

#[derive(Debug, Serialize, Deserialize)]
struct QueueSnapshot {
    listener: u64,
    passed: Vec<u64>,
    held: Vec<OfferSnapshot>,
}

#[derive(Debug, Serialize, Deserialize)]
struct OfferSnapshot {
    connection: u64,
    kind: KindSnapshot,
    message: Vec<u8>,
    descriptors: FdRange,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KindSnapshot {
    Offer,
    ArenaOffer,
}

impl Offers {
    /// The offers as a value.
    pub(in crate::core) fn snapshot(
        &self,
        exports: &mut Exports,
    ) -> Result<OffersSnapshot, HandoverError> {
        let Self { queues } = self;
        let mut all: Vec<_> = queues.iter().collect();
        all.sort_by_key(|(listener, _)| **listener);
        let mut queues = Vec::with_capacity(all.len());
        for (listener, queue) in all {
            let mut held = Vec::with_capacity(queue.held.len());
            for offer in &queue.held {
                let Offer {
                    connection,
                    kind,
                    message,
                    descriptors,
                    // Until they are passed, which is soon.
                    _charge: _,
                } = offer;
                held.push(OfferSnapshot {
                    connection: connection.as_u64(),
                    kind: match kind {
                        MessageKind::ArenaOffer => KindSnapshot::ArenaOffer,
                        MessageKind::Offer | MessageKind::Reply => KindSnapshot::Offer,
                    },
                    message: message.clone(),
                    descriptors: exports.fds(descriptors)?,
                });
            }
            queues.push(QueueSnapshot {
                listener: listener.as_u64(),
                passed: queue.passed.iter().map(|id| id.as_u64()).collect(),
                held,
            });
        }
        Ok(OffersSnapshot {
            version: OFFERS_SNAPSHOT_VERSION,
            queues,
        })
    }

    /// The offers of a snapshot. `is_known` says which listeners and connections there are.
    ///
    /// # Errors
    ///
    /// If the snapshot is damaged.
    pub(in crate::core) fn restore(
        snapshot: OffersSnapshot,
        imports: &mut Imports,
        is_listener: impl Fn(ListenerId) -> bool,
        is_connection: impl Fn(ConnectionId) -> bool,
    ) -> Result<Self, HandoverError> {
        let OffersSnapshot { version, queues } = snapshot;
        check_version(version, OFFERS_SNAPSHOT_VERSION)?;
        let mut offers = Self::default();
        let (mut previous, mut seen) = (None, HashSet::new());
        for queue in queues {
            let QueueSnapshot {
                listener,
                passed,
                held,
            } = queue;
            ensure(Some(listener) > previous, "the listeners are not in order")?;
            previous = Some(listener);
            let listener = ListenerId::from_u64(listener);
            ensure(is_listener(listener), "an offer is for no listener")?;
            for id in passed {
                // One that was passed may have ended meanwhile.
                ensure(seen.insert(id), "a connection is offered twice")?;
                offers.pass(listener, ConnectionId::from_u64(id));
            }
            for offer in held {
                let OfferSnapshot {
                    connection,
                    kind,
                    message,
                    descriptors,
                } = offer;
                ensure(seen.insert(connection), "a connection is offered twice")?;
                let connection = ConnectionId::from_u64(connection);
                ensure(is_connection(connection), "an offer is of no connection")?;
                check_limit(
                    "descriptors in an offer",
                    descriptors.count() as usize,
                    DESCRIPTORS,
                )?;
                let most = hvsock_endpoint::MAX_MESSAGE;
                check_limit("bytes in an offer", message.len(), most)?;
                let mut list = imports.fds(descriptors)?;
                let taken = (0..descriptors.count()).map(|index| list.take(index));
                let descriptors = taken.collect::<Result<_, _>>()?;
                let kind = match kind {
                    KindSnapshot::Offer => MessageKind::Offer,
                    KindSnapshot::ArenaOffer => MessageKind::ArenaOffer,
                };
                offers.hold(
                    listener,
                    Offer {
                        connection,
                        kind,
                        message,
                        descriptors,
                        _charge: None,
                    },
                );
            }
        }
        Ok(offers)
    }

    /// The listeners for which connections are held.
    pub(in crate::core) fn listeners(&self) -> Vec<ListenerId> {
        let held = self
            .queues
            .iter()
            .filter(|(_, queue)| !queue.held.is_empty());
        held.map(|(listener, _)| *listener).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::handover::testing::exported;

    fn offer(connection: u64, descriptors: u64) -> Offer {
        let memory = |len| hvsock_sys::shared_memory::create(len).unwrap();
        Offer {
            connection: ConnectionId::from_u64(connection),
            kind: MessageKind::ArenaOffer,
            message: vec![7; connection as usize],
            descriptors: (1..=descriptors).map(memory).collect(),
            _charge: None,
        }
    }

    fn handed_over(offers: &Offers) -> (serde_json::Value, Imports) {
        exported(|exports| serde_json::to_value(offers.snapshot(exports).unwrap()).unwrap())
    }

    fn restore(value: serde_json::Value, mut imports: Imports) -> Result<Offers, String> {
        let snapshot = serde_json::from_value(value).map_err(|error| error.to_string())?;
        let restored = Offers::restore(
            snapshot,
            &mut imports,
            |listener| listener.as_u64() < 10,
            |connection| connection.as_u64() < 100,
        );
        restored.map_err(|error| error.to_string())
    }

    #[test]
    fn held_offers_keep_their_order_messages_and_descriptors() {
        let listeners = [1, 2].map(ListenerId::from_u64);
        let mut offers = Offers::default();
        offers.pass(listeners[0], ConnectionId::from_u64(3));
        offers.hold(listeners[0], offer(5, 2));
        offers.hold(listeners[0], offer(4, 0));
        offers.hold(listeners[1], offer(6, 5));
        let (value, imports) = handed_over(&offers);
        let mut restored = restore(value.clone(), imports).unwrap();
        assert_eq!(restored.passed(listeners[0]), 1);
        assert_eq!(restored.listeners().len(), 2);
        for (listener, connection, descriptors) in [(0, 5, 2), (0, 4, 0), (1, 6, 5)] {
            let next = restored.next(listeners[listener]).unwrap();
            assert_eq!(next.connection.as_u64(), connection);
            assert_eq!(next.kind, MessageKind::ArenaOffer);
            assert_eq!(next.message.len() as u64, connection);
            let len = |one: &std::os::fd::OwnedFd| rustix::fs::fstat(one.as_fd()).unwrap().st_size;
            assert!(next.descriptors.iter().map(len).eq(1..=descriptors));
        }
        assert_eq!(restored.listeners(), []);
        // Damaged ones are refused.
        for (path, new) in [
            ("/queues/0/listener", 12),
            ("/queues/1/listener", 1),
            ("/queues/0/passed/0", 5),
            ("/queues/0/held/0/connection", 4),
            ("/queues/0/held/0/connection", 100),
            ("/queues/0/held/0/descriptors/count", 6),
            ("/queues/0/held/0/descriptors/first", 1),
            ("/version", 2),
        ] {
            let (mut damaged, imports) = handed_over(&offers);
            *damaged.pointer_mut(path).unwrap() = new.into();
            assert!(restore(damaged, imports).is_err(), "{path} {new}");
        }
    }
}
