//! The addresses that sockets are bound to, before any of them listens.
//!
//! A bound socket has its address as its name in the kernel's abstract namespace of Unix sockets. So the kernel gives an
//! address to one socket at a time, among all processes of one `hvsock run`, and takes it back when the last descriptor is
//! closed. A listener is the broker's, which knows it.

use std::os::fd::{AsFd, BorrowedFd};

use hvsock_address::SockAddrVm;
use hvsock_interpose::model::{Address, OwnCid};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::table::Table;

/// Gives a socket an address.
///
/// # Errors
///
/// `EADDRINUSE` if another socket has one that excludes it.
pub fn claim(
    table: Table,
    socket: BorrowedFd<'_>,
    address: Address,
    own: OwnCid,
) -> Result<(), Errno> {
    for other in excluded(address, own) {
        if is_claimed(table, other) {
            return Err(Errno::ADDRINUSE);
        }
    }
    match rustix::net::bind(socket, &name(table, address)?) {
        Err(Errno::ADDRINUSE) => Err(Errno::ADDRINUSE),
        // Where no names can be had, a bound address is not exclusive until its socket listens.
        _ => Ok(()),
    }
}

/// The other addresses that no socket may have at the same time: as in the kernel, one at any context id has its port
/// alone.
fn excluded(address: Address, own: OwnCid) -> Vec<Address> {
    let Address::Vsock(address) = address else {
        return Vec::new();
    };
    let others = match address.cid {
        SockAddrVm::CID_ANY => vec![SockAddrVm::CID_LOCAL, own.0],
        _ => vec![SockAddrVm::CID_ANY],
    };
    let at = |cid| Address::Vsock(SockAddrVm { cid, ..address });
    others.into_iter().map(at).collect()
}

fn is_claimed(table: Table, address: Address) -> bool {
    let probe = || {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
        let probe = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        // It has the name for a moment, if no other one has it.
        rustix::net::bind(probe.as_fd(), &name(table, address)?)
    };
    probe() == Err(Errno::ADDRINUSE)
}

/// The name that stands for an address.
fn name(table: Table, address: Address) -> Result<SocketAddrUnix, Errno> {
    let run = table.random();
    let place = match address {
        Address::Vsock(SockAddrVm { cid, port, .. }) => format!("{cid}:{port}"),
        Address::HyperV(address) => format!("{}:{}", address.vm, address.service),
    };
    SocketAddrUnix::new_abstract_name(format!("hvsock-run-{run:016x}-{place}").as_bytes())
}

#[cfg(test)]
mod tests {
    use hvsock_address::{ServiceId, SockAddrHv, VmId};
    use hvsock_interpose::model::DescriptorFlags;

    use super::*;
    use crate::socket::unix_socket;
    use crate::table;

    const OWN: OwnCid = OwnCid(2);

    fn table() -> Table {
        let words = table::LEN / size_of::<u64>();
        let memory = (0..words).map(|_| std::sync::atomic::AtomicU64::new(0));
        Table::new(Vec::from_iter(memory).leak()).unwrap()
    }

    fn vsock(cid: u32, port: u32) -> Address {
        Address::Vsock(SockAddrVm::new(cid, port))
    }

    #[test]
    fn an_address_is_one_sockets_until_that_is_closed() {
        let (table, other_run) = (table(), table());
        let socket = || unix_socket(DescriptorFlags::default()).unwrap();
        let claim_as = |table, socket: &std::os::fd::OwnedFd, address| {
            claim(table, socket.as_fd(), address, OWN)
        };
        let any = vsock(SockAddrVm::CID_ANY, 5000);
        let first = socket();
        claim_as(table, &first, any).unwrap();
        for address in [any, vsock(1, 5000), vsock(2, 5000)] {
            let refused = claim_as(table, &socket(), address);
            assert_eq!(refused, Err(Errno::ADDRINUSE), "{address:?}");
        }
        claim_as(table, &socket(), vsock(SockAddrVm::CID_ANY, 5001)).unwrap();
        claim_as(other_run, &socket(), any).unwrap();
        drop(first);
        let (local, own) = (socket(), socket());
        claim_as(table, &local, vsock(1, 5000)).unwrap();
        claim_as(table, &own, vsock(2, 5000)).unwrap();
        assert_eq!(claim_as(table, &socket(), any), Err(Errno::ADDRINUSE));
        let service = ServiceId::from_port(5000);
        let hyperv = |vm| Address::HyperV(SockAddrHv::new(vm, service));
        let children = socket();
        claim_as(table, &children, hyperv(VmId::CHILDREN)).unwrap();
        claim_as(table, &socket(), hyperv(VmId::LOOPBACK)).unwrap();
        let again = claim_as(table, &socket(), hyperv(VmId::CHILDREN));
        assert_eq!(again, Err(Errno::ADDRINUSE));
    }
}
