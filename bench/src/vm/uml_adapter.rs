//! Adapts the vhost-user messages of User-mode Linux to a back end on the crate vhost, such as
//! vhost-device-vsock. Memory, queues and notifications stay between the two.
//!
//! It cuts the memory table behind its last region, and offers BACKEND_REQ on the back end's behalf: without
//! it User-mode Linux has no interrupt for its queues.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

const SET_MEM_TABLE: u32 = 5;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_BACKEND_REQ_FD: u32 = 21;
const BACKEND_REQ: u64 = 1 << 5;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
const MAX_FILES: usize = 8;
const MAX_BODY: u32 = 4096;

/// Listens at `path` for one VMM and connects it to the back end at `back_end`.
pub(super) fn start(path: PathBuf, back_end: PathBuf) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    let relay = move || {
        if let Err(error) = relay(&listener, &back_end) {
            eprintln!("the adapter of User-mode Linux: {error}");
        }
    };
    thread::Builder::new().spawn(relay).map(drop)
}

struct Message {
    request: u32,
    flags: u32,
    body: Vec<u8>,
    files: Vec<OwnedFd>,
}

fn relay(listener: &UnixListener, back_end: &Path) -> io::Result<()> {
    let (vmm, _) = listener.accept()?;
    let back_end = UnixStream::connect(back_end)?;
    let (replies, to_vmm) = (back_end.try_clone()?, vmm.try_clone()?);
    thread::spawn(move || {
        while let Ok(Some(mut reply)) = receive(&replies) {
            if reply.request == GET_PROTOCOL_FEATURES {
                change_u64(&mut reply.body, |features| features | BACKEND_REQ);
            }
            if send(&to_vmm, &reply).is_err() {
                break;
            }
        }
    });
    // The VMM takes its close for the end of the device.
    let mut channel = None;
    while let Some(mut message) = receive(&vmm)? {
        match message.request {
            SET_MEM_TABLE => {
                let count = message.body.first().copied().unwrap_or(0);
                message.body.truncate(8 + 32 * usize::from(count));
            }
            SET_PROTOCOL_FEATURES => {
                change_u64(&mut message.body, |features| features & !BACKEND_REQ);
            }
            SET_BACKEND_REQ_FD => {
                channel = message.files.pop();
                if message.flags & NEED_REPLY != 0 {
                    let done = Message {
                        request: message.request,
                        flags: 1 | REPLY,
                        body: vec![0; 8],
                        files: Vec::new(),
                    };
                    send(&vmm, &done)?;
                }
                continue;
            }
            _ => {}
        }
        send(&back_end, &message)?;
    }
    drop(channel);
    back_end.shutdown(std::net::Shutdown::Both)
}

fn change_u64(body: &mut Vec<u8>, change: impl FnOnce(u64) -> u64) {
    if let Ok(bytes) = body.as_slice().try_into() {
        *body = change(u64::from_ne_bytes(bytes)).to_ne_bytes().to_vec();
    }
}

/// The next message; `None` at the end.
fn receive(socket: &UnixStream) -> io::Result<Option<Message>> {
    let mut header = [0; 12];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
    let received = {
        let mut slices = [IoSliceMut::new(&mut header)];
        rustix::net::recvmsg(socket, &mut slices, &mut control, flags)?
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut files = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = ancillary {
            files.extend(fds);
        }
    }
    let word = |at: usize| {
        let bytes = header[at..at + 4].try_into();
        bytes.map_or(0, u32::from_ne_bytes)
    };
    let size = word(8);
    if received.bytes < header.len() || size > MAX_BODY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; size as usize];
    (&mut &*socket).read_exact(&mut body)?;
    Ok(Some(Message {
        request: word(0),
        flags: word(4),
        body,
        files,
    }))
}

fn send(socket: &UnixStream, message: &Message) -> io::Result<()> {
    let mut bytes = Vec::new();
    for word in [message.request, message.flags, message.body.len() as u32] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(&message.body);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<_> = message.files.iter().map(OwnedFd::as_fd).collect();
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    // A Unix socket takes a message of this size in one piece.
    let slices = [IoSlice::new(&bytes)];
    rustix::net::sendmsg(socket, &slices, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
