//! One vhost-user connection that sends a script's messages and checks the replies.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::super::memory::Memory;
use super::super::virtqueue::Virtqueue;
use super::super::vmm::{
    Acks, NEED_REPLY, PROTOCOL_FEATURES, Vmm, encode_region, protocol, request, vring_state,
};
use super::fault::{Fault, FaultAt, Message};
use super::script::{Base, Channel, Script, Step};
use super::{FrontEnd, state};

/// The reply to SET_DEVICE_STATE_FD: no descriptor is attached, the front end's own is used.
const NO_DESCRIPTOR: u64 = 1 << 8;
/// The directions of SET_DEVICE_STATE_FD.
const SAVE: u32 = 0;
const LOAD: u32 = 1;

/// The queues of a device.
pub(in super::super) const QUEUES: usize = 3;

/// What a VMM's messages are about.
#[derive(Clone, Copy)]
pub(in super::super) struct Machine<'a> {
    pub(in super::super) memory: &'a Memory,
    pub(in super::super) queues: [&'a Virtqueue; QUEUES],
    pub(in super::super) cid: u64,
    /// The virtio features that the guest's driver accepts.
    pub(in super::super) features: u64,
    /// The protocol features that the VMM accepts.
    pub(in super::super) protocol: u64,
}

/// What a VMM knows, also across a hang-up and, in a snapshot, across its own end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Known {
    /// The features that the device offers.
    offered: u64,
    /// Those that are negotiated.
    pub(in super::super) features: u64,
    /// The protocol features that are negotiated.
    protocol: u64,
    /// Where each queue goes on.
    pub(in super::super) bases: [u16; QUEUES],
    /// Whether `bases` are part of a snapshot.
    pub(in super::super) restores: bool,
    /// The device's state, as it has saved it.
    state: Option<Vec<u8>>,
}

impl Known {
    /// What a new VMM knows that restores the VM, with another state of the device if one is given.
    pub(in super::super) fn of_new_vmm(self, state: Option<Vec<u8>>) -> Self {
        Self {
            restores: false,
            state: state.or(self.state),
            ..self
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(in super::super) struct Session {
    pub(in super::super) vmm: Vmm,
    front_end: FrontEnd,
    script: &'static Script,
    pub(in super::super) known: Known,
    /// The features that were sent last on this connection.
    sent_features: Option<u64>,
    sent_table: bool,
    /// The channel for the device's requests: our end, and the device's.
    requests: Option<(UnixStream, UnixStream)>,
    fault: Option<FaultAt>,
    messages: usize,
    timeout: Duration,
}

impl Session {
    /// Lets the VMM `front_end` use this connection.
    pub(in super::super) fn new(
        vmm: Vmm,
        front_end: FrontEnd,
        timeout: Duration,
        known: Known,
        fault: Option<FaultAt>,
    ) -> Self {
        Self {
            vmm,
            front_end,
            script: front_end.script(),
            known,
            sent_features: None,
            sent_table: false,
            requests: None,
            fault,
            messages: 0,
            timeout,
        }
    }

    /// The messages sent so far.
    pub(in super::super) fn messages(&self) -> usize {
        self.messages
    }

    /// Whether the device holds its end of the channel for its requests, and has sent nothing. True without one.
    pub(in super::super) fn request_channel_is_open(&self) -> bool {
        self.requests.as_ref().is_none_or(|(near, _)| {
            let read = (&mut &*near).read(&mut [0]);
            read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        })
    }

    /// Sends the messages of `steps`.
    ///
    /// # Errors
    /// If the device closes the connection, or answers with a failure, too late, or with what the VMM does not
    /// accept.
    pub(in super::super) fn run(&mut self, steps: &[Step], machine: Machine<'_>) -> io::Result<()> {
        for step in steps {
            match *step {
                Step::All(inner) => self.run(inner, machine)?,
                Step::Queues(inner) => {
                    (0..self.script.queues)
                        .try_for_each(|queue| self.run_for(inner, machine, queue))?;
                }
                Step::QueuesBackwards(inner) => {
                    (0..self.script.queues)
                        .rev()
                        .try_for_each(|queue| self.run_for(inner, machine, queue))?;
                }
                Step::IfState(inner) => {
                    if self.has(protocol::DEVICE_STATE) {
                        self.run(inner, machine)?;
                    }
                }
                Step::UnlessState(inner) => {
                    if !self.has(protocol::DEVICE_STATE) {
                        self.run(inner, machine)?;
                    }
                }
                _ => self.run_for(&[*step], machine, 0)?,
            }
        }
        Ok(())
    }

    fn run_for(&mut self, steps: &[Step], machine: Machine<'_>, queue: usize) -> io::Result<()> {
        steps.iter().try_for_each(|step| {
            self.step(*step, machine, queue).map_err(|error| {
                let text = format!("{:?}, {step:?} of queue {queue}: {error}", self.front_end);
                io::Error::new(error.kind(), text)
            })
        })
    }

    fn step(&mut self, step: Step, machine: Machine<'_>, queue: usize) -> io::Result<()> {
        let ring = machine.queues[queue];
        let index = queue as u32;
        let number = u64::from(index).to_ne_bytes();
        match step {
            Step::Owner => self.set(request::SET_OWNER, &[], &[]),
            Step::GetFeatures => {
                self.known.offered = self.get_u64(request::GET_FEATURES)?;
                let guest = self.known.offered & self.script.features & machine.features;
                self.known.features = guest | self.known.offered & PROTOCOL_FEATURES;
                Ok(())
            }
            Step::SetFeatures => {
                let features = self.known.features;
                self.sent_features = Some(features);
                self.set(request::SET_FEATURES, &features.to_ne_bytes(), &[])
            }
            Step::SetNewFeatures => {
                // At first only the bit of the protocol features is set.
                let sent = self.sent_features;
                match sent.unwrap_or(PROTOCOL_FEATURES) == self.known.features {
                    true => Ok(()),
                    false => self.step(Step::SetFeatures, machine, queue),
                }
            }
            Step::GetProtocol => {
                if self.known.offered & PROTOCOL_FEATURES != 0 {
                    let offered = self.get_u64(request::GET_PROTOCOL_FEATURES)?;
                    self.known.protocol = offered & machine.protocol;
                }
                Ok(())
            }
            Step::SetProtocol => {
                if self.known.offered & PROTOCOL_FEATURES == 0 {
                    return Ok(());
                }
                let common = self.known.protocol;
                self.set(request::SET_PROTOCOL_FEATURES, &common.to_ne_bytes(), &[])?;
                self.vmm.set_protocol(common);
                Ok(())
            }
            Step::Acks(acks) => {
                self.vmm.set_protocol(self.known.protocol);
                self.vmm.set_acks(acks);
                Ok(())
            }
            Step::QueueNum => {
                if !self.has(protocol::MQ) {
                    return Ok(());
                }
                let queues = self.get_u64(request::GET_QUEUE_NUM)?;
                expect(queues >= self.script.queues as u64, || {
                    format!("the device has {queues} queues")
                })
            }
            Step::RequestChannel => self.request_channel(),
            Step::MemTable { room } => self.mem_table(machine.memory, room),
            Step::FirstMemTable => match std::mem::replace(&mut self.sent_table, true) {
                true => Ok(()),
                false => self.mem_table(machine.memory, 0),
            },
            Step::ReadCid { size, flags } => {
                if !self.has(protocol::CONFIG) {
                    return Ok(());
                }
                let mut cid = Vec::new();
                for offset in (0..8).step_by(size as usize) {
                    cid.extend(self.read_config(offset, size, flags)?);
                }
                expect(cid == machine.cid.to_le_bytes(), || {
                    format!("the device's configuration is {cid:?}")
                })
            }
            Step::Num => {
                let size = u32::from(ring.size());
                self.set(request::SET_VRING_NUM, &vring_state(index, size), &[])
            }
            Step::Base(base) => {
                let at = match base {
                    Base::Zero => 0,
                    Base::Available if !self.known.restores => ring.available_index_in_memory(),
                    Base::Stopped | Base::Available => self.known.bases[queue],
                };
                let body = vring_state(index, u32::from(at));
                self.set(request::SET_VRING_BASE, &body, &[])
            }
            Step::Addr { log } => {
                let at = ring.addresses();
                let mut body = u64::from(index).to_ne_bytes().to_vec();
                for address in [at.descriptors, at.used, at.available, log] {
                    body.extend(address.to_ne_bytes());
                }
                self.set(request::SET_VRING_ADDR, &body, &[])
            }
            Step::Kick => self.set(request::SET_VRING_KICK, &number, &[ring.kick_event()]),
            Step::Call => self.set(request::SET_VRING_CALL, &number, &[ring.call_descriptor()]),
            Step::Enable(enable) => {
                if self.known.features & PROTOCOL_FEATURES == 0 {
                    return Ok(());
                }
                let body = vring_state(index, u32::from(enable));
                self.set(request::SET_VRING_ENABLE, &body, &[])
            }
            Step::GetBase => {
                let body = vring_state(index, 0);
                let reply = self.get(request::GET_VRING_BASE, &body, &[])?.0;
                let base = reply.get(4..8).and_then(|bytes| bytes.try_into().ok());
                let base = base.map(u32::from_ne_bytes);
                let base = base.and_then(|base| u16::try_from(base).ok());
                expect(
                    reply.get(..4) == Some(&index.to_ne_bytes()) && base.is_some(),
                    || format!("the base of the queue is {reply:?}"),
                )?;
                self.known.bases[queue] = base.unwrap_or(0);
                Ok(())
            }
            Step::ResetDevice => match self.has(protocol::RESET_DEVICE) {
                true => self.set(request::RESET_DEVICE, &[], &[]),
                false => Ok(()),
            },
            Step::Barrier => self.get_u64(request::GET_FEATURES).map(drop),
            Step::Save(channel) => self.save(channel),
            Step::Load(channel) => self.load(channel),
            // `run` has taken them apart.
            Step::All(_)
            | Step::Queues(_)
            | Step::QueuesBackwards(_)
            | Step::IfState(_)
            | Step::UnlessState(_) => Ok(()),
        }
    }

    fn has(&self, protocol: u64) -> bool {
        self.known.protocol & protocol != 0
    }

    fn request_channel(&mut self) -> io::Result<()> {
        if !self.has(protocol::BACKEND_REQ) {
            let needed = self.front_end == FrontEnd::UserModeLinux;
            return expect(!needed, || {
                "without BACKEND_REQ, the guest has no interrupt for its queues".to_owned()
            });
        }
        if self.requests.is_none() {
            let (near, far) = UnixStream::pair()?;
            near.set_nonblocking(true)?;
            self.requests = Some((near, far));
        }
        let far = self.requests.as_ref().map(|(_, far)| far.try_clone());
        let far = far.transpose()?;
        let far: Vec<BorrowedFd<'_>> = far.iter().map(AsFd::as_fd).collect();
        self.set(request::SET_BACKEND_REQ_FD, &[], &far)
    }

    fn mem_table(&mut self, memory: &Memory, room: usize) -> io::Result<()> {
        let regions = memory.regions();
        let mut body = (regions.len() as u64).to_ne_bytes().to_vec();
        body.extend(regions.iter().flat_map(encode_region));
        body.resize(body.len().max(8 + room * 32), 0);
        let files = vec![memory.descriptor(); regions.len()];
        self.set(request::SET_MEM_TABLE, &body, &files)
    }

    /// Reads a part of the configuration.
    pub(in super::super) fn read_config(
        &mut self,
        offset: u32,
        size: u32,
        flags: u32,
    ) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        for word in [offset, size, flags] {
            body.extend(word.to_ne_bytes());
        }
        let header = body.clone();
        body.resize(12 + size as usize, 0);
        let (reply, _) = self.get(request::GET_CONFIG, &body, &[])?;
        // The VMM compares offset and size, and takes a reply without content for a failure.
        let is_whole = reply.len() == body.len() && reply[..8] == header[..8];
        expect(is_whole, || {
            format!("the device's configuration is {reply:?}")
        })?;
        Ok(reply[12..].to_vec())
    }

    /// Writes a part of the configuration.
    pub(in super::super) fn write_config(&mut self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        let mut body = Vec::new();
        for word in [offset, bytes.len() as u32, 0] {
            body.extend(word.to_ne_bytes());
        }
        body.extend(bytes);
        self.set(request::SET_CONFIG, &body, &[])
    }

    fn save(&mut self, channel: Channel) -> io::Result<()> {
        if !self.has(protocol::DEVICE_STATE) {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        }
        let until = Instant::now() + self.timeout;
        let (read, write) = state::channel(channel)?;
        let from = self.state_channel(SAVE, &write)?.unwrap_or(read);
        // The device's end of file is that of the last writer.
        drop(write);
        self.known.state = Some(state::read_to_end(from, until)?);
        self.known.restores = true;
        self.check_state()
    }

    fn load(&mut self, channel: Channel) -> io::Result<()> {
        if !self.has(protocol::DEVICE_STATE) {
            return Ok(());
        }
        let until = Instant::now() + self.timeout;
        let (read, write) = state::channel(channel)?;
        let to = self.state_channel(LOAD, &read)?;
        drop(read);
        let saved = self.known.state.clone().unwrap_or_default();
        state::write_all(to.unwrap_or(write), &saved, until)?;
        self.known.restores = true;
        self.check_state()
    }

    /// Sends the channel, and returns the device's own if it sends one.
    fn state_channel(&mut self, direction: u32, fd: &OwnedFd) -> io::Result<Option<OwnedFd>> {
        let mut body = direction.to_ne_bytes().to_vec();
        // The only phase: all queues are stopped.
        body.extend(0_u32.to_ne_bytes());
        let (reply, mut files) = self.get(request::SET_DEVICE_STATE_FD, &body, &[fd.as_fd()])?;
        let value = <[u8; 8]>::try_from(&reply[..]).map_or(1, u64::from_ne_bytes);
        match (value, files.pop()) {
            (NO_DESCRIPTOR, None) => Ok(None),
            (0, Some(file)) if files.is_empty() => Ok(Some(file)),
            _ => Err(io::Error::other(format!(
                "no channel for the state: {reply:?}"
            ))),
        }
    }

    fn check_state(&mut self) -> io::Result<()> {
        let failed = self.get_u64(request::CHECK_DEVICE_STATE)?;
        expect(failed == 0, || {
            "the device has failed to transfer its state".to_owned()
        })
    }

    /// The device's saved state.
    pub(in super::super) fn state(&self) -> Option<&[u8]> {
        self.known.state.as_deref()
    }

    /// Sends a request, and waits for its acknowledgement if that is negotiated.
    fn set(&mut self, request: u32, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let acks = self.vmm.acks() != Acks::None;
        let flags = if acks { NEED_REPLY } else { 0 };
        let sent = self.send(request, flags, body, descriptors)?;
        if !acks || !sent {
            return Ok(());
        }
        match self.vmm.receive_reply(request)?.as_slice() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Ok(()),
            other => Err(io::Error::other(format!(
                "request {request} failed: {other:?}"
            ))),
        }
    }

    /// Sends a request that has a reply, and returns that.
    fn get(
        &mut self,
        request: u32,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let flags = match self.vmm.acks() {
            Acks::Every => NEED_REPLY,
            Acks::None | Acks::Sets => 0,
        };
        match self.send(request, flags, body, descriptors)? {
            true => self.vmm.receive_with_files(request),
            false => Err(io::Error::other("the request is not sent")),
        }
    }

    fn get_u64(&mut self, request: u32) -> io::Result<u64> {
        let (reply, _) = self.get(request, &[], &[])?;
        let bytes = <[u8; 8]>::try_from(&reply[..]);
        let bytes = bytes.map_err(|_| io::Error::other(format!("not a number: {reply:?}")))?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Sends a message, or what the fault makes of it. Returns whether a reply is to be awaited.
    fn send(
        &mut self,
        request: u32,
        flags: u32,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<bool> {
        let number = self.messages;
        self.messages += 1;
        let fault = self.fault.filter(|fault| fault.message == number);
        let Some(FaultAt { fault, .. }) = fault else {
            self.vmm.send(request, flags, body, descriptors)?;
            return Ok(true);
        };
        let mut message = Message {
            request,
            flags,
            body: body.to_vec(),
            descriptors: descriptors.to_vec(),
        };
        message.falsify(fault, self.vmm.socket().as_fd());
        let Message {
            request,
            flags,
            body,
            descriptors,
        } = message;
        match fault {
            Fault::Missing => return Ok(false),
            Fault::Cut => {
                self.vmm.send_half(request, flags, &body, &descriptors)?;
                self.vmm.socket().shutdown(std::net::Shutdown::Both)?;
                return Err(io::ErrorKind::NotConnected.into());
            }
            Fault::Twice => self.vmm.send(request, flags, &body, &descriptors)?,
            _ => {}
        }
        self.vmm.send(request, flags, &body, &descriptors)?;
        Ok(true)
    }
}

/// A reply that the VMM does not accept.
fn expect(holds: bool, text: impl FnOnce() -> String) -> io::Result<()> {
    match holds {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, text())),
    }
}
