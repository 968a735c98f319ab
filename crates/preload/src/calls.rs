//! What each call on an emulated socket does. The model decides; this module asks the broker for it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use hvsock::Refusal;
use hvsock_address::{SockAddrHv, SockAddrVm, VmId};
use hvsock_endpoint::{BrokerMessage, ClientMessage, Flags, Listen, Refused, Transports};
use hvsock_interpose::model::{
    self, Address, Creation, DescriptorFlags, Family, ListenStep, OptionAnswer, OwnCid,
};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use crate::claim::claim;
use crate::endpoint::{self, Conversation, Failure};
use crate::name::Name;
use crate::partition::own;
use crate::record::Record;
use crate::socket::{Socket, cookie, errno, note, unix_socket};
use crate::table::Table;
use crate::{connect, notice, registration, replace, state};

/// How often `bind` looks for a free port, as the kernel does.
const MAX_PORT_RETRIES: u32 = 24;
/// How often an address that is in use is tried again: the broker may not yet have seen that the program closed
/// the listener that has it.
const CLOSE_RETRIES: u32 = 5;
const CLOSE_INTERVAL: Duration = Duration::from_millis(10);
/// How often one `accept` listens again.
const RELISTENS: u32 = 3;
/// The most connections that may wait, as the kernel's `net.core.somaxconn` bounds them.
const MAX_BACKLOG: u32 = 4096;

/// Makes a socket. `None` if it is one of the kernel's.
pub fn socket(domain: i32, kind: i32, protocol: i32) -> Option<Result<OwnedFd, Errno>> {
    match model::create(domain, kind, protocol) {
        Creation::Native => None,
        Creation::Error(error) => Some(Err(errno(error))),
        Creation::Socket(family, flags) => {
            let table = state::table()?;
            let made = unix_socket(flags);
            if let Some(cookie) = made.as_ref().ok().and_then(cookie) {
                table.insert(cookie, &Record::new(model::Socket::new(family)));
            }
            Some(made.inspect(|made| note(made)))
        }
    }
}

/// Answers `bind`.
pub fn bind(socket: &Socket<'_>, name: &Name) -> Result<(), Errno> {
    let own = own(socket.record.socket.family())?;
    let wanted = socket
        .record
        .socket
        .bind(name.bytes(), own, may_bind_privileged_ports)
        .map_err(errno)?;
    let address = free_address(socket, wanted, own)?;
    socket.update(|record| match record.socket.local() {
        // Another thread was faster.
        Some(_) => Err(Errno::INVAL),
        None => {
            record.socket.bound(address);
            Ok(())
        }
    })?
}

/// The address itself, or with a port that is free if it has none. Asks the broker what a listener there would get.
fn free_address(socket: &Socket<'_>, wanted: Address, own: OwnCid) -> Result<Address, Errno> {
    let table = socket.table();
    let take = |address| {
        check_free(address, own)?;
        claim(table, socket.fd, address, own)
    };
    let Address::Vsock(SockAddrVm {
        port: SockAddrVm::PORT_ANY,
        ..
    }) = wanted
    else {
        return take(wanted).map(|()| wanted);
    };
    for _ in 0..MAX_PORT_RETRIES {
        let candidate = with_port(wanted, table.ephemeral_port());
        match take(candidate) {
            Err(Errno::ADDRINUSE) => {}
            result => return result.map(|()| candidate),
        }
    }
    Err(Errno::ADDRNOTAVAIL)
}

fn with_port(address: Address, port: u32) -> Address {
    match address {
        Address::Vsock(address) => Address::Vsock(SockAddrVm { port, ..address }),
        address => address,
    }
}

/// Fails with `EADDRINUSE` if there is a listener that has the address. Whether a listener there gets any connection
/// is for `listen` to find out.
fn check_free(address: Address, own: OwnCid) -> Result<(), Errno> {
    let target = model::listen_target(address, own);
    for _ in 0..CLOSE_RETRIES {
        let mut asked = target;
        let refusal = loop {
            let refusal = dry_run(asked)?.map(|refused| of_wire(&refused));
            let narrower = refusal
                .as_ref()
                .and_then(|refusal| model::narrower_target(address, own, asked, refusal));
            match narrower {
                Some(target) => asked = target,
                None => break refusal,
            }
        };
        if refusal != Some(Refusal::AddressInUse) {
            return Ok(());
        }
        std::thread::sleep(CLOSE_INTERVAL);
    }
    Err(Errno::ADDRINUSE)
}

/// What a listener at an address would be refused for.
fn dry_run(address: SockAddrHv) -> Result<Option<Refused>, Errno> {
    let answer = Conversation::open().and_then(|broker| {
        broker.send(&listen_request(address, 1, true))?;
        broker.answer()
    });
    match answer.map_err(|failure| of_listen(&failure))?.message {
        BrokerMessage::Explained(refused) => Ok(Some(refused)),
        _ => Ok(None),
    }
}

fn is_in_use(refused: &Refused) -> bool {
    of_wire(refused) == Refusal::AddressInUse
}

fn listen_request(address: SockAddrHv, backlog: u32, dry_run: bool) -> ClientMessage {
    let flags = Flags {
        raw_fd: true,
        dry_run,
        ..Flags::default()
    };
    let transports = Transports::DESCRIPTOR;
    ClientMessage::Listen(Listen {
        flags,
        backlog,
        transports,
        address,
    })
}

/// Answers `listen`. The descriptor becomes the connection to the broker: it is readable when there is a connection to
/// accept.
pub fn listen(socket: &Socket<'_>, backlog: i32) -> Result<(), Errno> {
    let ListenStep::Start(address) = socket.record.socket.listen().map_err(errno)? else {
        return Ok(());
    };
    let backlog = u32::try_from(backlog)
        .unwrap_or(u32::MAX)
        .clamp(1, MAX_BACKLOG);
    start_to_listen(socket, address, backlog)
}

fn start_to_listen(socket: &Socket<'_>, address: Address, backlog: u32) -> Result<(), Errno> {
    let record = &socket.record;
    let own = own(record.socket.family())?;
    let mut target = model::listen_target(address, own);
    let mut first_refusal = None;
    let mut may_register = true;
    let listener = loop {
        match start_listener(record, target, backlog) {
            Err(Failure::Refused(refused)) => {
                let refusal = of_wire(&refused);
                if refusal == Refusal::Unregistered
                    && std::mem::take(&mut may_register)
                    && registration::request(target.service)
                {
                    continue;
                }
                match model::narrower_target(address, own, target, &refusal) {
                    Some(narrower) => target = narrower,
                    None => break Err(Failure::Refused(refused)),
                }
                first_refusal.get_or_insert(refusal);
            }
            result => break result,
        }
    };
    if let (Ok(_), Some(refusal)) = (&listener, &first_refusal) {
        notice::restricted(&address, target.vm, refusal);
    }
    let listener = listener
        .map_err(|failure| of_listen(&failure))?
        .into_socket();
    let mut listening = record.clone();
    listening.socket.listening();
    listening.backlog = backlog;
    let cookie = cookie(&listener).ok_or(Errno::IO)?;
    socket.table().insert(cookie, &listening);
    replace::socket(socket.fd, &listener)?;
    note(socket.fd);
    Ok(())
}

/// Listens again at the same address, since the broker has ended the listener, or has itself ended. Until that succeeds
/// `accept` fails with `ECONNABORTED`, which servers take for the failure of one connection.
fn listen_again(listener: &Socket<'_>) -> Result<(), Errno> {
    let address = listener.record.socket.local().ok_or(Errno::INVAL)?;
    start_to_listen(listener, address, listener.record.backlog).map_err(|_| {
        // The descriptor is readable until then, and a server tries at once.
        std::thread::sleep(CLOSE_INTERVAL);
        Errno::CONNABORTED
    })
}

/// A listener at an address, for which an address that was just closed is tried for a moment.
fn start_listener(
    record: &Record,
    address: SockAddrHv,
    backlog: u32,
) -> Result<Conversation, Failure> {
    let mut tries = CLOSE_RETRIES;
    loop {
        let broker = Conversation::open()?;
        broker.set_options(&record.socket)?;
        broker.send(&listen_request(address, backlog, false))?;
        match broker.answer() {
            Ok(answer) => match answer.message {
                BrokerMessage::Listening(_) => return Ok(broker),
                _ => return Err(Errno::PROTO.into()),
            },
            Err(Failure::Refused(refused)) if is_in_use(&refused) && tries > 0 => {
                tries -= 1;
                std::thread::sleep(CLOSE_INTERVAL);
            }
            Err(failure) => return Err(failure),
        }
    }
}

fn of_wire(refused: &Refused) -> Refusal {
    Refusal::from_wire(refused.code, &refused.detail)
}

/// A connection that was accepted.
pub struct Accepted {
    socket: OwnedFd,
    record: Record,
}

impl Accepted {
    /// Its peer's address.
    pub fn peer(&self) -> Result<Name, Errno> {
        self.record.socket.peer().map(Name::from).map_err(errno)
    }

    /// Its socket, for the program.
    pub fn into_socket(self) -> OwnedFd {
        note(&self.socket);
        self.socket
    }
}

/// Answers `accept` and `accept4`.
pub fn accept(listener: &Socket<'_>, flags: i32) -> Result<Accepted, Errno> {
    let flags = DescriptorFlags::parse(flags).map_err(errno)?;
    listener.record.socket.accept().map_err(errno)?;
    check_space_for_descriptors(listener.fd)?;
    let mut tries = RELISTENS;
    let (incoming, data) = loop {
        let answer = match endpoint::receive_as_set(listener.fd) {
            Ok(answer) => answer,
            Err(Failure::Refused(_) | Failure::System(Errno::CONNRESET)) => {
                tries = tries.checked_sub(1).ok_or(Errno::CONNABORTED)?;
                listen_again(listener)?;
                continue;
            }
            Err(Failure::System(error)) => return Err(error),
        };
        if let BrokerMessage::Incoming(incoming) = answer.message {
            let connection = incoming.connection;
            // A broker that does not take it is gone, which the next call reports.
            let _ = endpoint::send(listener.fd, &ClientMessage::Accepted { connection });
            // The control connection, which is the second one, is not needed for a program that does not know
            // the protocol.
            let data = answer.descriptors.into_iter().next().ok_or(Errno::MFILE)?;
            break (incoming, data);
        }
    };
    let (local, peer) = addresses(listener, incoming.local, incoming.peer)?;
    hvsock_sys::set_nonblocking(&data, flags.nonblocking).map_err(|_| Errno::IO)?;
    if !flags.close_on_exec {
        rustix::io::fcntl_setfd(&data, rustix::io::FdFlags::empty())?;
    }
    let record = Record::new(model::Socket::accepted(
        &listener.record.socket,
        local,
        peer,
    ));
    if let Some(cookie) = cookie(&data) {
        listener.table().insert(cookie, &record);
    }
    Ok(Accepted {
        socket: data,
        record,
    })
}

/// Fails with `EMFILE` if this process has no descriptors for a connection, which would be lost.
fn check_space_for_descriptors(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let first = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
    let second = rustix::io::fcntl_dupfd_cloexec(fd, 0)?;
    drop((first, second));
    Ok(())
}

/// The two addresses of an accepted connection.
fn addresses(
    listener: &Socket<'_>,
    local: SockAddrHv,
    peer: SockAddrHv,
) -> Result<(Address, Address), Errno> {
    let family = listener.record.socket.family();
    if family == Family::HyperV {
        return Ok((Address::HyperV(local), Address::HyperV(peer)));
    }
    let own = own(family)?;
    let port = match listener.record.socket.local() {
        Some(Address::Vsock(address)) => address.port,
        _ => SockAddrVm::PORT_ANY,
    };
    let cid = match peer.vm {
        VmId::LOOPBACK => own.0,
        vm => Conversation::open()
            .and_then(|broker| broker.cid_of(vm))
            // The peer's partition may be gone by now; the connection is not.
            .unwrap_or(SockAddrVm::CID_ANY),
    };
    let peer = SockAddrVm::new(cid, listener.table().ephemeral_port());
    let local = model::local_of(family, local, own, port);
    Ok((local, Address::Vsock(peer)))
}

/// Answers `getsockname`.
pub fn local(socket: &Socket<'_>) -> Result<Name, Errno> {
    let record = connect::settled(socket)?;
    record.socket.name().map(Name::from).map_err(errno)
}

/// Answers `getpeername`.
pub fn peer(socket: &Socket<'_>) -> Result<Name, Errno> {
    let record = connect::settled(socket)?;
    record.socket.peer().map(Name::from).map_err(errno)
}

/// Answers `getsockopt` for a buffer of `space` bytes. `None`: the kernel answers.
pub fn option(
    socket: &Socket<'_>,
    level: i32,
    name: i32,
    space: u32,
) -> Option<Result<Name, Errno>> {
    let Ok(space) = i32::try_from(space) else {
        return Some(Err(Errno::INVAL));
    };
    let space = usize::try_from(space).unwrap_or(0);
    let int = |value: i32| {
        let bytes = value.to_ne_bytes();
        Some(Ok(Name::of(bytes.get(..space).unwrap_or(&bytes))))
    };
    match (level, name) {
        // A listener is another kind of socket behind the program's descriptor.
        (libc::SOL_SOCKET, libc::SO_TYPE) => return int(libc::SOCK_STREAM),
        (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => {
            return int(socket.record.socket.is_listening().into());
        }
        (libc::SOL_SOCKET, libc::SO_ERROR) => {
            if let Err(error) = connect::settled(socket) {
                return Some(Err(error));
            }
        }
        _ => {}
    }
    match socket.update(|record| record.socket.option(level, name, space)) {
        Ok(OptionAnswer::Native) => None,
        Ok(OptionAnswer::Value(bytes)) => Some(Ok(Name::of(&bytes))),
        Ok(OptionAnswer::Error(error)) => Some(Err(errno(error))),
        Err(error) => Some(Err(error)),
    }
}

/// Answers `setsockopt` with the `len` bytes that `read` fetches. `None`: the kernel answers.
pub fn set_option(
    socket: &Socket<'_>,
    level: i32,
    name: i32,
    len: u32,
    read: impl FnOnce(&mut [u8]) -> Result<(), Errno>,
) -> Option<Result<(), Errno>> {
    let Ok(len) = i32::try_from(len) else {
        return Some(Err(Errno::INVAL));
    };
    let most = model::MAX_LEN as u32;
    let value = Name::with_len(len.unsigned_abs().min(most)).and_then(|mut value| {
        read(value.bytes_mut())?;
        Ok(value)
    });
    let answer = value.and_then(|value| {
        socket.update(|record| record.socket.set_option(level, name, value.bytes()))
    });
    match answer {
        Ok(OptionAnswer::Native) => None,
        Ok(OptionAnswer::Value(_)) => Some(Ok(())),
        Ok(OptionAnswer::Error(error)) => Some(Err(errno(error))),
        Err(error) => Some(Err(error)),
    }
}

/// Answers `shutdown`. `None`: the kernel answers, for a connection.
pub fn shutdown(socket: &Socket<'_>, how: i32) -> Option<Result<(), Errno>> {
    // The kernel's call on a listener would end the connection to the broker.
    let refused = socket.record.socket.shutdown(how).err();
    refused.map(|error| Err(errno(error)))
}

/// Notes that the program closes a descriptor.
pub fn closing(table: Table, fd: BorrowedFd<'_>) -> Option<Result<i32, Errno>> {
    let socket = Socket::find(table, fd)?;
    connect::abandon(&socket);
    table.closed(cookie(fd)?);
    None
}

fn of_listen(failure: &Failure) -> Errno {
    match failure {
        Failure::System(error) => *error,
        Failure::Refused(refused) => errno(model::Errno::of_listen(&Refusal::from_wire(
            refused.code,
            &refused.detail,
        ))),
    }
}

fn may_bind_privileged_ports() -> bool {
    let sets = rustix::thread::capabilities(None);
    sets.is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_BIND_SERVICE))
}
