//! How the connections of one VM share the bytes that may be buffered for their ends.

use hvsock_ring::{ArenaLimits, RingSize};

/// Buffer bytes of all connections of one VM, each way. Each connection gets an equal share, but at
/// least [`MIN_BUFFER`].
const BUFFER_BUDGET: usize = 64 * 1024 * 1024;
/// Smallest buffer of one connection.
pub(super) const MIN_BUFFER: u32 = 16 * 1024;
/// Largest buffer of one connection, and so the largest ring of a process's connection to a guest.
const MAX_BUFFER: u32 = 1024 * 1024;
/// The ring of a connection to a guest without a requested size, if the VM's share allows it. Three threads
/// move the bytes, the guest's, the device's and the process's, and a ring has to hold what two of them move
/// while the third is being woken. 256 KiB, enough for two processes, are not.
pub(super) const GUEST_RING: u32 = MAX_BUFFER;
/// Largest buffer of a connection without a ring: the default of Linux guests.
pub(super) const DEFAULT_BUFFER: u32 = 256 * 1024;

/// Bytes of the receive buffers of one VM's connections whose sockets processes have. Each gets an equal share,
/// but at least the kernel's default.
const CREDIT_BUDGET: u64 = 4 * BUFFER_BUDGET as u64;
/// The largest of these buffers: more makes no connection faster.
const MAX_CREDIT: u64 = 4 * 1024 * 1024;

/// Bytes of the granted rings of one VM's arenas, each way.
const GRANTED_BUDGET: u64 = 2 * BUFFER_BUDGET as u64;
/// The most slots that a new arena is granted, and the fewest of a full one.
const FIRST_SLOTS: u32 = 32;
/// The most bytes of the rings that a new arena is granted, each way.
const FIRST_BYTES: u32 = 8 * 1024 * 1024;
/// Bytes of the rings of a full arena, each way, unless [`FIRST_SLOTS`] have more.
const ARENA_BYTES: u32 = 16 * 1024 * 1024;

/// The buffer bytes of one more connection of a VM that has `connections`, each way.
pub(super) fn share_of_buffers(connections: usize) -> u32 {
    equal_share(BUFFER_BUDGET, connections)
}

/// The receive buffer in bytes of a connection whose socket a process gets, of a VM that has `connections`. The
/// kernel keeps what a guest has sent and the process has not read.
pub(super) fn credit(connections: usize) -> u64 {
    let share = CREDIT_BUDGET / (connections as u64 + 1);
    share.clamp(DEFAULT_BUFFER.into(), MAX_CREDIT)
}

/// The limits of one more arena of a VM that has `connections` and whose other arenas are granted rings of
/// `granted` bytes each way.
///
/// The rings are at most of the `wanted` size. An arena is filled by the connections that follow, so they
/// have half of an equal share. Of what the other arenas leave, at most a quarter is granted at first.
pub(super) fn share_of_arenas(wanted: RingSize, connections: usize, granted: u64) -> ArenaLimits {
    let most = GRANTED_BUDGET.saturating_sub(granted) / 4;
    let mut bytes = equal_share(BUFFER_BUDGET / 2, connections).min(wanted.bytes());
    while bytes > MIN_BUFFER && granted_bytes(first_slots(bytes), bytes) > most {
        bytes /= 2;
    }
    let ring = RingSize::at_least(bytes.max(MIN_BUFFER));
    let slots = (ARENA_BYTES / ring.bytes()).max(FIRST_SLOTS);
    ArenaLimits {
        slots: slots.min(ArenaLimits::MAX_SLOTS),
        ring,
    }
}

/// Slots that a new arena is granted. Each further grant doubles them.
pub(super) fn first_slots(ring: u32) -> u32 {
    (FIRST_BYTES / ring).clamp(1, FIRST_SLOTS)
}

/// Whether an arena with rings of `ring` bytes may be granted `more` slots in a VM whose arenas are granted
/// rings of `granted` bytes each way. The smallest rings are bounded by the number of connections.
pub(super) fn may_grow(ring: u32, more: u32, granted: u64) -> bool {
    ring <= MIN_BUFFER || granted + granted_bytes(more, ring) <= GRANTED_BUDGET
}

/// Bytes of the rings of some slots, each way.
pub(super) fn granted_bytes(slots: u32, ring: u32) -> u64 {
    u64::from(slots) * u64::from(ring)
}

fn equal_share(budget: usize, connections: usize) -> u32 {
    let share = u32::try_from(budget / (connections + 1)).unwrap_or(MAX_BUFFER);
    // Ring capacities are powers of two.
    1 << share.clamp(MIN_BUFFER, MAX_BUFFER).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u32 = 1024;

    #[test]
    fn the_credit_of_a_guest_shrinks_to_the_kernels_default() {
        assert_eq!(credit(0), MAX_CREDIT);
        assert_eq!(credit(127), 2 * 1024 * 1024);
        assert_eq!(credit(100_000), u64::from(DEFAULT_BUFFER));
    }

    /// An arena of the model, full or not.
    struct Arena {
        listener: usize,
        limits: ArenaLimits,
        granted: u32,
        used: u32,
    }

    /// Opens connections to listeners in turn, as a guest and the core do. Returns the arenas.
    fn open(connections: usize, listeners: usize) -> Vec<Arena> {
        let mut arenas: Vec<Arena> = Vec::new();
        for number in 0..connections {
            let listener = number % listeners;
            let granted = arenas.iter().map(bytes).sum::<u64>();
            let found = arenas.iter_mut().any(|arena| {
                if arena.listener != listener {
                    return false;
                }
                let more = (arena.granted * 2).min(arena.limits.slots) - arena.granted;
                if arena.used == arena.granted && may_grow(arena.limits.ring.bytes(), more, granted)
                {
                    arena.granted += more;
                }
                let has_room = arena.used < arena.granted;
                arena.used += u32::from(has_room);
                has_room
            });
            if found {
                continue;
            }
            let limits = share_of_arenas(RingSize::at_least(GUEST_RING), number, granted);
            arenas.push(Arena {
                listener,
                limits,
                granted: first_slots(limits.ring.bytes()).min(limits.slots),
                used: 1,
            });
        }
        arenas
    }

    fn bytes(arena: &Arena) -> u64 {
        granted_bytes(arena.granted, arena.limits.ring.bytes())
    }

    fn rings(arenas: &[Arena]) -> Vec<(u32, u32)> {
        let arenas = arenas.iter();
        arenas
            .map(|arena| (arena.used, arena.limits.ring.bytes() / KIB))
            .collect()
    }

    #[test]
    fn a_thousand_connections_of_a_pair_have_six_arenas_and_rings_of_at_least_32_kib() {
        assert_eq!(
            rings(&open(1000, 1)),
            [
                (32, 1024),
                (32, 512),
                (64, 256),
                (128, 128),
                (256, 64),
                (488, 32)
            ]
        );
    }

    #[test]
    fn a_guest_with_few_connections_to_each_of_sixteen_listeners_has_large_rings_to_most() {
        let arenas = open(32, 16);
        assert_eq!(arenas.len(), 16);
        assert!(rings(&arenas)[..13].iter().all(|ring| *ring == (2, 1024)));
        assert!(rings(&arenas).iter().all(|ring| ring.1 >= 128));
    }

    #[test]
    fn rings_of_arenas_stay_within_the_budget_but_for_the_smallest() {
        for listeners in [1, 2, 3, 5, 10, 20, 50, 100] {
            for connections in [1, 10, 100, 1000, 4096] {
                let arenas = open(connections, listeners);
                let larger = arenas.iter();
                let larger = larger.filter(|arena| arena.limits.ring.bytes() > MIN_BUFFER);
                let sum: u64 = larger.map(bytes).sum();
                assert!(sum <= GRANTED_BUDGET, "{connections} to {listeners}: {sum}");
                // Each has 3 descriptors of the broker.
                assert!(
                    arenas.len() <= (6 + 2 * listeners).max(connections.min(40)),
                    "{connections} to {listeners}: {} arenas",
                    arenas.len()
                );
            }
        }
    }

    #[test]
    fn an_arena_has_rings_of_the_wanted_size_if_that_is_smaller() {
        for (wanted, slots) in [(1, 1024), (64 * KIB, 256), (256 * KIB, 64)] {
            let limits = share_of_arenas(RingSize::at_least(wanted), 0, 0);
            assert_eq!(limits.ring.bytes(), wanted.max(MIN_BUFFER));
            assert_eq!(limits.slots, slots);
        }
        let limits = share_of_arenas(RingSize::at_least(16 << 20), 0, 0);
        assert_eq!((limits.ring.bytes(), limits.slots), (MAX_BUFFER, 32));
    }
}
