//! User-mode Linux (`arch/um/drivers/virtio_uml.c`).
//!
//! It differs from QEMU: a memory table of fixed size, in memory that is not sealed and has the same addresses
//! in the VMM; a channel for requests of the device; sockets as call descriptors; a queue that is stopped by
//! SET_VRING_ENABLE alone.

use super::super::call::Calls;
use super::super::memory::{MemoryKind, ProcessAddresses};
use super::super::vmm::{Acks, protocol};
use super::script::{Base, Script, Step};

pub(super) static SCRIPT: Script = Script {
    memory: MemoryKind {
        process: ProcessAddresses::AsGuest,
        ..MemoryKind::UNSEALED
    },
    calls: Calls::Sockets,
    queue_size: 256,
    queues: 3,
    features: !0,
    protocol: protocol::REPLY_ACK
        | protocol::BACKEND_REQ
        | protocol::CONFIG
        | protocol::INBAND_NOTIFICATIONS,
    kicks: false,
    // `vhost_user_init`.
    connect: &[
        Step::Owner,
        Step::GetFeatures,
        Step::GetProtocol,
        // Its own request already asks for an acknowledgement.
        Step::Acks(Acks::Sets),
        Step::SetProtocol,
        Step::RequestChannel,
        Step::SetFeatures,
    ],
    reconnect: None,
    // `vu_find_vqs`.
    start: START,
    // `vu_del_vqs`.
    stop: &[
        Step::QueuesBackwards(&[Step::Enable(false)]),
        Step::GetFeatures,
    ],
    // A process that is stopped sends nothing.
    pause: &[],
    resume: &[],
    save: &[],
    resume_saved: &[],
    load: None,
};

const START: &[Step] = &[
    // Its table has room for two regions.
    Step::MemTable { room: 2 },
    Step::Queues(&[
        Step::Call,
        Step::Num,
        Step::Base(Base::Zero),
        Step::Addr { log: u64::MAX },
    ]),
    Step::Queues(&[Step::Kick, Step::Enable(true)]),
    Step::ReadCid { size: 8, flags: 0 },
];
