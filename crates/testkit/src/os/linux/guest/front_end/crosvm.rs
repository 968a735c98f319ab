//! crosvm, at commit f1e797a68dad.
//!
//! `devices/src/virtio/vhost_user_frontend/mod.rs` (`new`, `activate`, `activate_vring`, `deactivate_vring`,
//! `reset`, `virtio_sleep`, `virtio_wake`, `virtio_snapshot`, `virtio_restore`, `read_config`),
//! `third_party/vmm_vhost/src/backend_client.rs`, `devices/src/virtio/mod.rs` (`base_features`) and
//! `vm_memory/src/guest_memory/sys/linux.rs` (`finalize_shm`).
//!
//! It negotiates acknowledgements and asks for none. It has no indirect descriptors. When the device's socket
//! hangs up, the VM ends.

use super::super::call::Calls;
use super::super::memory::MemoryKind;
use super::super::vmm::{PROTOCOL_FEATURES, protocol};
use super::script::{Base, Channel, Script, Step};
use hvsock_virtio::features;

pub(super) static SCRIPT: Script = Script {
    memory: MemoryKind {
        begin: 0,
        ..MemoryKind::SEALED
    },
    calls: Calls::EachQueue,
    // `Queue::MAX_SIZE`.
    queue_size: 32768,
    queues: 3,
    features: TYPE_SPECIFIC | features::VERSION_1 | features::EVENT_IDX | PROTOCOL_FEATURES,
    protocol: protocol::CONFIG
        | protocol::MQ
        | protocol::BACKEND_REQ
        | protocol::DEVICE_STATE
        | protocol::SHMEM
        | protocol::REPLY_ACK,
    kicks: false,
    connect: CONNECT,
    reconnect: None,
    start: &[
        // The guest's driver reads it before it starts the device. The flags are those of its own request.
        Step::ReadCid { size: 4, flags: 1 },
        Step::All(ACTIVATE),
    ],
    stop: SLEEP,
    pause: SLEEP,
    resume: ACTIVATE,
    save: &[Step::Save(Channel::Pipe)],
    resume_saved: ACTIVATE,
    load: Some(&[
        Step::All(CONNECT),
        Step::SetNewFeatures,
        Step::Load(Channel::Pipe),
        Step::All(ACTIVATE),
    ]),
};

/// `VIRTIO_DEVICE_TYPE_SPECIFIC_FEATURES_MASK`.
const TYPE_SPECIFIC: u64 = 0xfffc_0000_00ff_ffff;

const CONNECT: &[Step] = &[
    Step::Owner,
    Step::GetFeatures,
    Step::GetProtocol,
    Step::SetProtocol,
    Step::RequestChannel,
    Step::QueueNum,
];

const ACTIVATE: &[Step] = &[
    Step::SetNewFeatures,
    Step::MemTable { room: 0 },
    Step::Queues(&[
        Step::Num,
        Step::Addr { log: 0 },
        Step::Base(Base::Stopped),
        Step::Call,
        Step::Kick,
        Step::Enable(true),
    ]),
];

const SLEEP: &[Step] = &[Step::Queues(&[Step::Enable(false), Step::GetBase])];
