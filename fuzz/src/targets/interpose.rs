//! Calls of a program on sockets of `AF_VSOCK` and `AF_HYPERV`: addresses, options, and any order of calls. Also the
//! words by which processes share a socket, and the first bytes of a program.

use hvsock_interpose::model::{
    Address, Creation, DescriptorFlags, Errno, Family, OptionAnswer, OwnCid, Ports, SOCKET_WORDS,
    Socket, create,
};
use hvsock_interpose::preload::Elf;

use super::vectors;
use crate::target::Seed;

/// The bytes of the script that are left.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> i32 {
        i32::from_le_bytes([(); 4].map(|()| self.byte()))
    }

    /// A length and so many bytes.
    fn bytes(&mut self) -> &'a [u8] {
        let count = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(count);
        self.0 = rest;
        bytes
    }

    /// A level or name of an option: one of those that are known, or any.
    fn option(&mut self) -> i32 {
        match self.byte() {
            255 => self.word(),
            byte => i32::from(byte),
        }
    }
}

/// Runs a script of calls on one socket.
pub(crate) fn run(bytes: &[u8]) {
    if let Some(rest) = bytes.strip_prefix(b"\x7fELF") {
        let _ = (Elf::parse(bytes), rest);
        return;
    }
    let mut script = Script(bytes);
    let own = OwnCid(match script.byte() {
        255 => script.word().cast_unsigned(),
        byte => u32::from(byte),
    });
    let family = match script.byte() {
        0 => match create(script.option(), script.option(), script.option()) {
            Creation::Socket(family, _) => family,
            _ => return,
        },
        byte if byte.is_multiple_of(2) => Family::Vsock,
        _ => Family::HyperV,
    };
    let (mut socket, mut ports) = (Socket::new(family), Ports::new(7));
    for step in 0..64_u32 {
        if script.0.is_empty() {
            break;
        }
        call(&mut script, &mut socket, &mut ports, own, step);
        // What another process reads of the table is the same socket.
        let words = socket.to_words();
        let again = Socket::from_words(&words).map(|socket| socket.to_words());
        assert_eq!(again, Some(words), "{socket:?}");
    }
    let mut words = [0; SOCKET_WORDS];
    for word in &mut words {
        *word = u64::from(script.word().cast_unsigned());
    }
    if let Some(socket) = Socket::from_words(&words) {
        let _ = (socket.name(), socket.peer(), socket.connect_timeout());
    }
}

fn call(
    script: &mut Script<'_>,
    socket: &mut Socket,
    ports: &mut Ports<u32>,
    own: OwnCid,
    step: u32,
) {
    match script.byte() % 12 {
        0 => {
            let privileged = script.byte().is_multiple_of(2);
            if let Ok(address) = socket.bind(script.bytes(), own, || privileged)
                && let Ok(claimed) = ports.claim(step, address)
            {
                socket.bound(claimed);
                assert_eq!(socket.local(), Some(claimed));
            }
        }
        1 => {
            if socket.listen().is_ok() {
                socket.listening();
            }
        }
        2 => {
            let nonblocking = script.byte().is_multiple_of(2);
            let _ = socket.connect(script.bytes(), nonblocking);
        }
        3 if socket.is_connecting() => {
            socket.connect_failed(Errno::ECONNREFUSED, step.is_multiple_of(2));
        }
        4 if socket.is_connecting() => socket.connect_cancelled(),
        5 if socket.is_connecting() => {
            if let Ok(peer) = Address::parse(socket.family(), script.bytes()) {
                socket.connected(peer, peer);
            }
        }
        6 if socket.is_listening() => socket.listening_ended(),
        7 => {
            let (level, name) = (script.option(), script.option());
            let space = usize::from(script.byte());
            if let OptionAnswer::Value(value) = socket.option(level, name, space) {
                assert!(value.len() <= space, "{level} {name}");
            }
        }
        8 => {
            let (level, name) = (script.option(), script.option());
            let _ = socket.set_option(level, name, script.bytes());
        }
        9 => {
            for address in [socket.name(), socket.peer()].into_iter().flatten() {
                let bytes = address.to_bytes();
                assert_eq!(Address::parse(address.family(), &bytes), Ok(address));
                let space = usize::from(script.byte());
                let (some, length) = address.truncated(space);
                assert!(some.len() == space.min(length) && length == bytes.len());
            }
        }
        10 => ports.release(u32::from(script.byte()) % 64),
        _ => {
            let _ = DescriptorFlags::parse(script.word());
            let _ = socket.accept();
        }
    }
}

/// Sockets that are bound, listen and connect at the addresses of the vectors.
pub(crate) fn seeds() -> Vec<Seed> {
    let addresses = vectors::bytes(vectors::ADDRESSES, "bytes").into_iter();
    let mut seeds: Vec<Seed> = addresses
        .filter(|(name, _)| name.contains("sockaddr"))
        .map(|(name, address)| {
            let family = if name.contains("_vm") { 2 } else { 1 };
            let address = [&[address.len() as u8], address.as_slice()].concat();
            let script = [
                &[3, family, 0, 0][..],
                &address,
                &[1, 9, 64, 2, 0],
                &address,
                &[5],
                &address,
                &[9, 64, 64, 7, 1, 4, 4],
            ];
            (name, script.concat())
        })
        .collect();
    seeds.extend(super::named([
        ("created", vec![3, 0, 40, 1, 0, 7, 40, 0, 8]),
        ("option", vec![3, 2, 8, 40, 6, 16, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("elf", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\x01\0\0\0\0\0\0\0\0\0\0\0\x40\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x40\0\x38\0\x01\0\0\0\0\0\0\0\x03\0\0\0\x04\0\0\0\x78\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0/lib/ld\0".to_vec()),
    ]));
    seeds
}
