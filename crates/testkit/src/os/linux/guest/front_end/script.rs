//! What a front end is made of: its memory, its notification descriptors, its features and its messages.

use std::time::Duration;

use super::super::call::Calls;
use super::super::memory::MemoryKind;
use super::super::vmm::Acks;

/// The messages of one VMM, and what it passes with them.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// How it allocates the guest's memory.
    pub memory: MemoryKind,
    /// The descriptors by which the device notifies the guest.
    pub calls: Calls,
    /// The size of each queue, if the person who starts the VM gives none.
    pub queue_size: u16,
    /// The queues that it gives to the device: the first two, or the event queue too.
    pub queues: usize,
    /// The virtio features that it offers to the guest, if the device has them.
    pub features: u64,
    /// The protocol features that it accepts.
    pub protocol: u64,
    /// Whether it kicks each queue that it starts, in case that the guest has done so before.
    pub kicks: bool,
    /// When it connects for the first time.
    pub connect: &'static [Step],
    /// When it connects again after a hang-up, if it does so.
    pub reconnect: Option<Reconnect>,
    /// When the guest's driver starts the device.
    pub start: &'static [Step],
    /// When the guest's driver resets the device: a reboot, or the removal of its module.
    pub stop: &'static [Step],
    /// When the VM is paused.
    pub pause: &'static [Step],
    /// When it resumes.
    pub resume: &'static [Step],
    /// After [`Script::pause`], when a snapshot is taken.
    pub save: &'static [Step],
    /// When a VM that was paused for a snapshot resumes.
    pub resume_saved: &'static [Step],
    /// When a VM is restored from a snapshot, if it can be, instead of [`Script::connect`]. This starts the queues.
    pub load: Option<&'static [Step]>,
}

/// How a VMM connects again.
#[derive(Clone, Copy, Debug)]
pub struct Reconnect {
    /// The time between two attempts.
    pub every: Duration,
    /// How long it tries.
    pub within: Duration,
    /// Its messages then. They start the queues.
    pub steps: &'static [Step],
}

/// The base of a queue: where the device shall go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Always 0.
    Zero,
    /// Where the device stopped, at first 0.
    Stopped,
    /// Where the device stopped if this is part of a snapshot, else the available index in the guest's memory.
    /// After a reconnect that is behind buffers which the device has not used.
    Available,
}

/// The channel of a device's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// A pipe.
    Pipe,
    /// A pair of sockets.
    Sockets,
}

/// A message with the check of its reply, or several of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// SET_OWNER.
    Owner,
    /// GET_FEATURES.
    GetFeatures,
    /// SET_FEATURES, with those that the guest's driver accepts.
    SetFeatures,
    /// As [`Step::SetFeatures`], if they are others than those sent last.
    SetNewFeatures,
    /// GET_PROTOCOL_FEATURES, if the device offers protocol features.
    GetProtocol,
    /// SET_PROTOCOL_FEATURES, with those in common.
    SetProtocol,
    /// No message: from here on, requests ask for acknowledgements, if REPLY_ACK is in common.
    Acks(Acks),
    /// GET_QUEUE_NUM. The device must have the script's queues.
    QueueNum,
    /// SET_BACKEND_REQ_FD with a socket, if BACKEND_REQ is in common.
    RequestChannel,
    /// SET_MEM_TABLE, with room for this many regions at least.
    MemTable {
        /// 0, or regions.
        room: usize,
    },
    /// As [`Step::MemTable`], once in a connection.
    FirstMemTable,
    /// GET_CONFIG, until 8 bytes are read. They must be the guest's context id.
    ReadCid {
        /// Bytes of one access.
        size: u32,
        /// The request's flags.
        flags: u32,
    },
    /// SET_VRING_NUM.
    Num,
    /// SET_VRING_BASE.
    Base(Base),
    /// SET_VRING_ADDR, with this log address.
    Addr {
        /// Used by no front end here.
        log: u64,
    },
    /// SET_VRING_KICK.
    Kick,
    /// SET_VRING_CALL.
    Call,
    /// SET_VRING_ENABLE, if protocol features are negotiated.
    Enable(bool),
    /// GET_VRING_BASE.
    GetBase,
    /// These steps.
    All(&'static [Step]),
    /// The steps for each of the script's queues, in order.
    Queues(&'static [Step]),
    /// The same, last queue first.
    QueuesBackwards(&'static [Step]),
    /// RESET_DEVICE, if it is in common.
    ResetDevice,
    /// SET_DEVICE_STATE_FD to save, the device's state, CHECK_DEVICE_STATE; if DEVICE_STATE is in common.
    Save(Channel),
    /// SET_DEVICE_STATE_FD to load, the saved state, CHECK_DEVICE_STATE; if DEVICE_STATE is in common.
    Load(Channel),
    /// A request that the VMM does not send, and its reply: the guest takes longer for what comes next than the
    /// device for the messages before, which nobody acknowledges.
    Barrier,
    /// The steps, if DEVICE_STATE is in common.
    IfState(&'static [Step]),
    /// The steps, if DEVICE_STATE is not in common.
    UnlessState(&'static [Step]),
}
