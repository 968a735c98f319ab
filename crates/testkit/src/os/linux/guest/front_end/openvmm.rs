//! OpenVMM's vhost-user device, at commit 1488a37b7cfe.
//!
//! `vm/devices/virtio/vhost_user_frontend/src/lib.rs` (`from_socket`, `start_queue`, `stop_queue`, `reset`,
//! `read_registers_u32`) and `vm/devices/virtio/virtio/src/transport/task.rs` (`enable`, `disable`, `stop`,
//! `start`).
//!
//! It sends the memory table once in a connection, and not again after RESET_DEVICE. Its own addresses are the
//! guest's plus 2^52. It does not notice that the device's socket hangs up.

use super::super::call::Calls;
use super::super::memory::{MemoryKind, ProcessAddresses};
use super::super::vmm::{Acks, protocol};
use super::script::{Base, Script, Step};

pub(super) static SCRIPT: Script = Script {
    memory: MemoryKind {
        begin: 0,
        // `GPA_TO_VA_OFFSET`.
        process: ProcessAddresses::Above(1 << 52),
        ..MemoryKind::UNSEALED
    },
    calls: Calls::EachQueue,
    queue_size: 128,
    queues: 3,
    features: !0,
    protocol: protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | protocol::RESET_DEVICE,
    kicks: false,
    connect: CONNECT,
    reconnect: None,
    start: &[
        // The guest's driver reads it before it starts the device.
        Step::ReadCid { size: 4, flags: 0 },
        Step::FirstMemTable,
        Step::SetFeatures,
        START,
    ],
    stop: &[STOP, Step::ResetDevice],
    pause: &[STOP],
    // The features are those of the first start.
    resume: &[START],
    save: &[],
    resume_saved: &[START],
    load: Some(&[
        Step::All(CONNECT),
        Step::FirstMemTable,
        Step::SetFeatures,
        START,
    ]),
};

const CONNECT: &[Step] = &[
    Step::GetFeatures,
    Step::GetProtocol,
    Step::SetProtocol,
    // It asks for no acknowledgement of this one.
    Step::Owner,
    Step::Acks(Acks::Sets),
    Step::QueueNum,
];

const START: Step = Step::Queues(&[
    Step::Num,
    Step::Addr { log: 0 },
    Step::Base(Base::Stopped),
    Step::Kick,
    Step::Call,
    Step::Enable(true),
]);

const STOP: Step = Step::Queues(&[Step::Enable(false), Step::GetBase]);
