//! Cloud Hypervisor's generic vhost-user device, at commit ae44c2971c83 (after v53.0).
//!
//! `virtio-devices/src/vhost_user`: `generic_vhost_user.rs` (`new`, `activate`, `read_config`), `mod.rs`
//! (`VhostUserEpollHandler::reconnect`, `VhostUserCommon::{activate, reset, pause, resume, state}`) and
//! `vu_common_ctrl.rs` (`connect_vhost_user`, `negotiate_features_vhost_user`, `setup_vhost_user`,
//! `reinitialize_vhost_user`, `reset_vhost_user`, `save_backend_state`, `restore_backend_state`).
//!
//! It drops the device's own feature bits, so its guests have no SEQPACKET. Once acknowledgements are
//! negotiated, each of its requests asks for one, also those with a reply. After a hang-up it connects again,
//! every 100 ms for 60 s, and names the available index as base. An error that is sent for GET_CONFIG or
//! SET_CONFIG is a panic.

use std::time::Duration;

use super::super::call::Calls;
use super::super::memory::MemoryKind;
use super::super::vmm::{Acks, PROTOCOL_FEATURES, protocol};
use super::script::{Base, Channel, Reconnect, Script, Step};
use hvsock_virtio::features;

pub(super) static SCRIPT: Script = Script {
    // `memory_manager.rs`, `create_anonymous_file`.
    memory: MemoryKind {
        begin: 0,
        ..MemoryKind::UNSEALED
    },
    calls: Calls::EachQueue,
    queue_size: 128,
    queues: 3,
    features: DEFAULT_VIRTIO_FEATURES,
    protocol: protocol::CONFIG
        | protocol::MQ
        | protocol::CONFIGURE_MEM_SLOTS
        | protocol::REPLY_ACK
        | protocol::INFLIGHT_SHMFD
        | protocol::LOG_SHMFD
        | protocol::DEVICE_STATE
        | protocol::BACKEND_REQ,
    kicks: false,
    connect: &[
        Step::Owner,
        Step::GetFeatures,
        Step::GetProtocol,
        Step::SetProtocol,
        Step::Acks(Acks::Every),
        Step::QueueNum,
    ],
    // `connect_vhost_user`.
    reconnect: Some(Reconnect {
        every: Duration::from_millis(100),
        within: Duration::from_secs(60),
        steps: AGAIN,
    }),
    start: &[
        // The guest's driver reads it before it starts the device.
        Step::ReadCid { size: 4, flags: 0 },
        Step::All(SETUP),
    ],
    stop: &[Step::Queues(&[Step::Enable(false), Step::GetBase])],
    pause: &[Step::Queues(&[Step::Enable(false)])],
    resume: &[Step::Queues(&[Step::Enable(true)])],
    save: &[Step::IfState(&[
        Step::Queues(&[Step::GetBase]),
        Step::Save(Channel::Sockets),
    ])],
    resume_saved: &[
        Step::IfState(SETUP),
        Step::UnlessState(&[Step::Queues(&[Step::Enable(true)])]),
    ],
    load: Some(&[
        Step::Owner,
        Step::GetFeatures,
        Step::SetProtocol,
        Step::Acks(Acks::Every),
        Step::Load(Channel::Sockets),
        Step::All(SETUP),
    ]),
};

/// `DEFAULT_VIRTIO_FEATURES` without those that no device here has.
const DEFAULT_VIRTIO_FEATURES: u64 =
    features::INDIRECT_DESC | features::EVENT_IDX | features::VERSION_1 | PROTOCOL_FEATURES;

/// A connection after the first. It sends the protocol features of the first without asking again.
const AGAIN: &[Step] = &[
    Step::Owner,
    Step::GetFeatures,
    Step::SetProtocol,
    Step::Acks(Acks::Every),
    Step::All(SETUP),
];

const SETUP: &[Step] = &[
    Step::SetFeatures,
    Step::MemTable { room: 0 },
    Step::Queues(&[Step::Num]),
    Step::Queues(&[
        Step::Addr { log: 0 },
        Step::Base(Base::Available),
        Step::Call,
        Step::Kick,
    ]),
    Step::Queues(&[Step::Enable(true)]),
    Step::RequestChannel,
];
