//! Replaces the socket behind the program's descriptors.
//!
//! A listener is the connection to the broker itself, which is another socket than the one that the program made.
//! Every descriptor of the old one in this process becomes one of the new one, with the same flags, and is
//! registered again in each epoll instance that had it.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use hvsock_sys::set_nonblocking;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};

use crate::abi::descriptor;

/// The descriptors of this process. Threads may have their own ones.
const DESCRIPTORS: &str = "/proc/thread-self/fd";
const DESCRIPTOR_INFO: &str = "/proc/thread-self/fdinfo";

/// A registration in an epoll instance.
struct Registration {
    instance: RawFd,
    events: EventFlags,
    data: EventData,
}

/// Makes `fd`, and every other descriptor of its socket in this process, one of `new`.
///
/// # Errors
///
/// Those of `dup3`. Then `fd` is unchanged.
pub fn socket(fd: BorrowedFd<'_>, new: impl AsFd) -> Result<(), Errno> {
    let new = new.as_fd();
    copy_options(fd, new)?;
    let inode = rustix::fs::fstat(fd)?.st_ino;
    let numbers = numbers();
    let same = numbers
        .iter()
        .filter(|(_, link)| *link == format!("socket:[{inode}]"));
    let own = descriptor::number(fd);
    let others = same
        .map(|(number, _)| *number)
        .filter(|number| *number != own);
    let instances: Vec<RawFd> = numbers
        .iter()
        .filter(|(_, link)| link == "anon_inode:[eventpoll]")
        .map(|(number, _)| *number)
        .collect();
    for number in std::iter::once(own).chain(others) {
        let registrations = registrations(&instances, number, inode);
        for registration in &registrations {
            descriptor::with(registration.instance, |instance| {
                descriptor::with(number, |fd| epoll::delete(instance, fd).ok())
            });
        }
        let replaced = descriptor::replace(number, new);
        for registration in &registrations {
            descriptor::with(registration.instance, |instance| {
                let (data, events) = (registration.data, registration.events);
                descriptor::with(number, |fd| epoll::add(instance, fd, data, events).ok())
            });
        }
        if number == own {
            replaced?;
        }
    }
    Ok(())
}

/// Whether this process has another descriptor of a socket.
pub fn is_duplicated(fd: BorrowedFd<'_>) -> bool {
    let Ok(stat) = rustix::fs::fstat(fd) else {
        return false;
    };
    let link = format!("socket:[{}]", stat.st_ino);
    numbers().iter().filter(|(_, other)| *other == link).count() > 1
}

/// Gives `new` what the program set for `old` and calls look at: the mode, and the timeouts.
fn copy_options(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = rustix::fs::fcntl_getfl(old)?;
    let nonblocking = flags.contains(rustix::fs::OFlags::NONBLOCK);
    set_nonblocking(new, nonblocking)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    for kind in [Timeout::Recv, Timeout::Send] {
        if let Some(timeout) = sockopt::socket_timeout(old, kind)? {
            sockopt::set_socket_timeout(new, kind, Some(timeout))?;
        }
    }
    Ok(())
}

/// The open descriptors with what they are. Empty without `/proc`.
fn numbers() -> Vec<(RawFd, String)> {
    let Ok(entries) = fs::read_dir(DESCRIPTORS) else {
        return Vec::new();
    };
    let number_and_link = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.ok()?;
        let number = entry.file_name().to_str()?.parse().ok()?;
        let link = fs::read_link(entry.path()).ok()?;
        Some((number, link.to_str()?.to_owned()))
    };
    entries.filter_map(number_and_link).collect()
}

/// The registrations of a descriptor in epoll instances of this process.
fn registrations(instances: &[RawFd], number: RawFd, inode: u64) -> Vec<Registration> {
    let of_instance = |instance: &RawFd| {
        let text = fs::read_to_string(format!("{DESCRIPTOR_INFO}/{instance}")).ok()?;
        let (events, data) = text
            .lines()
            .find_map(|line| registration(line, number, inode))?;
        let (instance, events) = (*instance, EventFlags::from_bits_retain(events));
        Some(Registration {
            instance,
            events,
            data: EventData::new_u64(data),
        })
    };
    instances.iter().filter_map(of_instance).collect()
}

/// Events and data of a line of an epoll instance's `fdinfo`, if it is about this descriptor:
/// `tfd: 5 events: 19 data: 5 pos:0 ino:61af sdev:7`, where all but the first number are hexadecimal.
fn registration(line: &str, number: RawFd, inode: u64) -> Option<(u32, u64)> {
    let line = line.replace(':', " ");
    let mut words = line.split_whitespace();
    let mut field = |name: &str| {
        let mut rest = words.by_ref().skip_while(|word| *word != name);
        rest.nth(1)
    };
    let is_number = field("tfd")?.parse() == Ok(number);
    let events = u32::from_str_radix(field("events")?, 16).ok()?;
    let data = u64::from_str_radix(field("data")?, 16).ok()?;
    let is_inode = u64::from_str_radix(field("ino")?, 16) == Ok(inode);
    (is_number && is_inode).then_some((events, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_an_epoll_instance_is_read_if_it_is_about_the_descriptor() {
        let line =
            "tfd:        5 events: 80000019 data:       ffffffff00000005  pos:0 ino:61af sdev:7";
        let found = Some((0x8000_0019, 0xffff_ffff_0000_0005));
        assert_eq!(registration(line, 5, 0x61af), found);
        assert_eq!(registration(line, 6, 0x61af), None);
        assert_eq!(registration(line, 5, 0x61ae), None);
        assert_eq!(registration("pos:\t0", 5, 0x61af), None);
        assert_eq!(registration("tfd: x events: y", 5, 0x61af), None);
    }
}
