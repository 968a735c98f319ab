//! libkrun's vhost-user device, at commit 6ed74facc26d (after 1.18).
//!
//! `src/devices/src/virtio/vhost_user/device.rs` (`new`, `activate_vhost_user`, `read_config`, `reset`) and
//! `src/vmm/src/builder.rs`.
//!
//! It reads the configuration before SET_OWNER, which it sends at each activation. All queues have one call
//! descriptor, and every base is 0. It does not notice that the device's socket hangs up, and pauses nothing.

use super::super::call::Calls;
use super::super::memory::MemoryKind;
use super::super::vmm::protocol;
use super::script::{Base, Script, Step};

pub(super) static SCRIPT: Script = Script {
    memory: MemoryKind {
        begin: 0,
        ..MemoryKind::UNSEALED
    },
    calls: Calls::Shared,
    queue_size: 256,
    queues: 3,
    features: !0,
    protocol: protocol::CONFIG | protocol::MQ,
    kicks: false,
    connect: &[Step::GetFeatures, Step::GetProtocol, Step::SetProtocol],
    reconnect: None,
    start: &[
        // The guest's driver reads it before it starts the device.
        Step::ReadCid { size: 4, flags: 0 },
        Step::Owner,
        Step::MemTable { room: 0 },
        Step::SetFeatures,
        Step::Queues(&[
            Step::Num,
            Step::Base(Base::Zero),
            Step::Addr { log: 0 },
            Step::Kick,
            Step::Call,
            Step::Enable(true),
        ]),
    ],
    stop: &[Step::Queues(&[Step::Enable(false)]), Step::Barrier],
    pause: &[],
    resume: &[],
    save: &[],
    resume_saved: &[],
    load: None,
};
