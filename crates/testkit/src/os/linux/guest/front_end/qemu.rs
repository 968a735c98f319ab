//! QEMU (`hw/virtio/vhost.c`, `hw/virtio/vhost-user.c`). It serves the event queue itself.

use std::time::Duration;

use super::super::call::Calls;
use super::super::memory::MemoryKind;
use super::super::vmm::{Acks, protocol};
use super::script::{Base, Reconnect, Script, Step};

pub(super) static SCRIPT: Script = Script {
    memory: MemoryKind::SEALED,
    calls: Calls::EachQueue,
    queue_size: 128,
    queues: 2,
    features: !0,
    protocol: protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | protocol::RESET_DEVICE,
    kicks: true,
    connect: CONNECT,
    reconnect: Some(Reconnect {
        // Any time that the person who starts the VM gives.
        every: Duration::from_millis(2),
        within: Duration::from_secs(10),
        steps: &[Step::All(CONNECT), Step::All(START)],
    }),
    start: START,
    stop: STOP,
    pause: STOP,
    resume: START,
    save: &[],
    resume_saved: START,
    // `.unmigratable = 1`.
    load: None,
};

const CONNECT: &[Step] = &[
    Step::GetFeatures,
    Step::GetProtocol,
    Step::SetProtocol,
    Step::Acks(Acks::Sets),
    Step::Owner,
    Step::SetFeatures,
];

const START: &[Step] = &[
    Step::MemTable { room: 0 },
    Step::Queues(&[
        Step::Num,
        Step::Base(Base::Stopped),
        Step::Addr { log: 0 },
        Step::Kick,
        Step::Call,
    ]),
    Step::Queues(&[Step::Enable(true)]),
];

const STOP: &[Step] = &[Step::Queues(&[Step::GetBase])];
