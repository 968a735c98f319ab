//! The refusals for limits of the broker's process: descriptors, mappings, descriptors in flight.

use std::io;

use hvsock_fabric::Refusal;

/// The refusal for a client or connection that the broker has no descriptor for.
pub(super) fn descriptor_limit(error: &io::Error) -> Refusal {
    Refusal::LimitReached {
        which: format!("broker descriptors ({error})"),
    }
}

/// The refusal if the kernel permits the broker no more memory mappings.
pub(super) fn mmap_limit(error: &io::Error) -> Refusal {
    Refusal::LimitReached {
        which: format!("memory mapped by the broker ({error})"),
    }
}

/// The refusal for too many descriptors in flight (`ETOOMANYREFS`, unix(7)).
pub(super) fn in_flight_limit(error: &io::Error) -> Refusal {
    Refusal::LimitReached {
        which: format!("descriptors in flight ({error})"),
    }
}

/// The refusal for a descriptor that epoll does not accept.
pub(super) fn watch_limit(error: &io::Error) -> Refusal {
    Refusal::LimitReached {
        which: format!("descriptors watched by the broker ({error})"),
    }
}
