//! The vhost-user messages of User-mode Linux, in its order (`arch/um/drivers/virtio_uml.c`).
//!
//! It differs from QEMU: a memory table of fixed size, in memory that is not sealed and has the same addresses
//! in the VMM; a channel for requests of the device; sockets as call descriptors; a queue that is stopped by
//! SET_VRING_ENABLE alone.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use hvsock_sys::event::Event;

use super::memory::Memory;
use super::virtqueue::Virtqueue;
use super::vmm::{PROTOCOL_FEATURES, Vmm, encode_region, protocol, request, vring_state};

/// The protocol features that it knows.
const PROTOCOL: u64 =
    protocol::REPLY_ACK | protocol::BACKEND_REQ | protocol::CONFIG | protocol::INBAND_NOTIFICATIONS;
/// The regions for which its memory table has room.
const TABLE: usize = 2;
/// Index of the event queue, which it starts like the others.
const EVENTS: u32 = 2;

/// What the device must not close as long as the VMM is connected.
#[derive(Debug)]
pub(super) struct Channels {
    /// Our end of the channel for the device's requests.
    requests: UnixStream,
    /// Our end of the event queue's call sockets.
    event_call: UnixStream,
    /// The device's end of them.
    event_far: UnixStream,
    event_kick: Event,
}

impl Channels {
    /// Whether the device holds its ends, and has sent nothing.
    pub(super) fn are_open_and_silent(&self) -> bool {
        [&self.requests, &self.event_call]
            .into_iter()
            .all(|mut end| {
                let read = end.read(&mut [0]);
                read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            })
    }
}

/// Negotiates features. Returns those of `accepted` that the device offers.
pub(super) fn negotiate(vmm: &mut Vmm, accepted: u64) -> io::Result<(u64, Channels)> {
    vmm.send_acked(request::SET_OWNER, &[], &[])?;
    let offered = vmm.request_u64(request::GET_FEATURES)?;
    let protocol = vmm.request_u64(request::GET_PROTOCOL_FEATURES)? & PROTOCOL;
    // Its own request already asks for an acknowledgement.
    vmm.set_protocol(protocol);
    vmm.send_acked(request::SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes(), &[])?;
    if protocol & protocol::BACKEND_REQ == 0 {
        let text = "without BACKEND_REQ, the guest has no interrupt for its queues";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let (requests, far) = UnixStream::pair()?;
    vmm.send_acked(request::SET_BACKEND_REQ_FD, &[], &[far.as_fd()])?;
    let negotiated = offered & (accepted | PROTOCOL_FEATURES);
    vmm.send_acked(request::SET_FEATURES, &negotiated.to_ne_bytes(), &[])?;
    let (event_call, event_far) = UnixStream::pair()?;
    for end in [&requests, &event_call] {
        end.set_nonblocking(true)?;
    }
    let channels = Channels {
        requests,
        event_call,
        event_far,
        event_kick: Event::new()?,
    };
    Ok((negotiated, channels))
}

/// Sends the memory table, sets up and starts all queues, and reads the context id.
pub(super) fn start(
    vmm: &Vmm,
    memory: &Memory,
    queues: [&Virtqueue; 2],
    channels: &Channels,
    cid: u64,
) -> io::Result<()> {
    let regions = memory.regions();
    let mut body = Vec::new();
    body.extend((regions.len() as u32).to_ne_bytes());
    body.extend([0; 4]);
    body.extend(regions.iter().flat_map(encode_region));
    body.resize(8 + TABLE * 32, 0);
    let files = vec![memory.descriptor(); regions.len()];
    vmm.send_acked(request::SET_MEM_TABLE, &body, &files)?;

    let [rx, tx] = queues;
    for (index, queue, call) in [
        (0, rx, rx.call_descriptor()),
        (1, tx, tx.call_descriptor()),
        (EVENTS, rx, channels.event_far.as_fd()),
    ] {
        let number = u64::from(index).to_ne_bytes();
        vmm.send_acked(request::SET_VRING_CALL, &number, &[call])?;
        let size = u32::from(queue.size());
        vmm.send_acked(request::SET_VRING_NUM, &vring_state(index, size), &[])?;
        vmm.send_acked(request::SET_VRING_BASE, &vring_state(index, 0), &[])?;
        let at = queue.addresses();
        let mut body = Vec::new();
        body.extend(index.to_ne_bytes());
        body.extend([0; 4]);
        for address in [at.descriptors, at.used, at.available, u64::MAX] {
            body.extend(address.to_ne_bytes());
        }
        vmm.send_acked(request::SET_VRING_ADDR, &body, &[])?;
    }
    for (index, kick) in [
        (0, rx.kick_event()),
        (1, tx.kick_event()),
        (EVENTS, channels.event_kick.as_fd()),
    ] {
        let number = u64::from(index).to_ne_bytes();
        vmm.send_acked(request::SET_VRING_KICK, &number, &[kick])?;
        vmm.enable_ring(index, true)?;
    }

    let mut body = Vec::new();
    for word in [0_u32, 8, 0] {
        body.extend(word.to_ne_bytes());
    }
    body.extend([0; 8]);
    vmm.send(request::GET_CONFIG, 0, &body, &[])?;
    let reply = vmm.receive_reply(request::GET_CONFIG)?;
    if reply.get(12..) != Some(&cid.to_le_bytes()[..]) {
        let text = format!("the device's configuration is {reply:?}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(())
}

/// Stops all queues, as the removal of the driver's module does.
pub(super) fn stop(vmm: &Vmm) -> io::Result<()> {
    for index in (0..=EVENTS).rev() {
        vmm.enable_ring(index, false)?;
    }
    vmm.request_u64(request::GET_FEATURES).map(drop)
}
