//! Sockets and addresses as words, for a table in memory that processes share.

use std::time::Duration;

use hvsock_address::{ServiceId, SockAddrHv, SockAddrVm, VmId};

use super::{Socket, State};
use crate::model::{Address, Errno, Family, Options};

/// The number of words of an address, or of none.
pub const ADDRESS_WORDS: usize = 5;
/// The number of words of a [`Socket`].
pub const SOCKET_WORDS: usize = 7 + 2 * ADDRESS_WORDS;

const NONE: u64 = 0;
const VSOCK: u64 = 1;
const HYPERV: u64 = 2;

const IDLE: u64 = 0;
const LISTENING: u64 = 1;
const CONNECTING: u64 = 2;
const CONNECTED: u64 = 3;

/// In place of the seconds of a timeout: there is none.
const NO_TIMEOUT: u64 = u64::MAX;

impl Socket {
    /// Encodes the socket.
    pub fn to_words(&self) -> [u64; SOCKET_WORDS] {
        let family = match self.family {
            Family::Vsock => VSOCK,
            Family::HyperV => HYPERV,
        };
        let (state, peer) = match self.state {
            State::Idle => (IDLE, None),
            State::Listening => (LISTENING, None),
            State::Connecting => (CONNECTING, None),
            State::Connected { peer } => (CONNECTED, Some(peer)),
        };
        let error = self
            .error
            .map_or(0, |error| u64::from(error.number().unsigned_abs()));
        let suspend = u64::from(self.options.connected_suspend);
        let timeout = self.options.connect_timeout;
        let (seconds, nanoseconds) = timeout.map_or((NO_TIMEOUT, 0), |timeout| {
            (timeout.as_secs(), timeout.subsec_nanos())
        });
        let scalars = [
            family | state << 8 | suspend << 16 | error << 32,
            self.options.buffer,
            self.options.buffer_min,
            self.options.buffer_max,
            seconds,
            u64::from(nanoseconds),
            0,
        ];
        let all = scalars.into_iter();
        let mut all = all
            .chain(address_to_words(self.local))
            .chain(address_to_words(peer));
        std::array::from_fn(|_| all.next().unwrap_or(0))
    }

    /// Decodes a socket. `None` if the words are none.
    pub fn from_words(words: &[u64; SOCKET_WORDS]) -> Option<Self> {
        let (scalars, rest) = words.split_first_chunk()?;
        let &[
            first,
            buffer,
            buffer_min,
            buffer_max,
            seconds,
            nanoseconds,
            _,
        ] = scalars;
        let (local, rest) = rest.split_first_chunk()?;
        let local = address_from_words(local)?;
        let peer = address_from_words(rest.first_chunk()?)?;
        let family = match first & 0xff {
            VSOCK => Family::Vsock,
            HYPERV => Family::HyperV,
            _ => return None,
        };
        let state = match (first >> 8 & 0xff, peer) {
            (IDLE, None) => State::Idle,
            (LISTENING, None) => State::Listening,
            (CONNECTING, None) => State::Connecting,
            (CONNECTED, Some(peer)) => State::Connected { peer },
            _ => return None,
        };
        let connect_timeout = match (seconds, u32::try_from(nanoseconds)) {
            (NO_TIMEOUT, Ok(0)) => None,
            (seconds, Ok(nanoseconds)) if nanoseconds < 1_000_000_000 => {
                Some(Duration::new(seconds, nanoseconds))
            }
            _ => return None,
        };
        let error = match i32::try_from(first >> 32).ok()? {
            0 => None,
            number => Some(Errno::new(number)),
        };
        let options = Options {
            buffer,
            buffer_min,
            buffer_max,
            connect_timeout,
            connected_suspend: match first >> 16 & 0xffff {
                0 => false,
                1 => true,
                _ => return None,
            },
        };
        Some(Self {
            family,
            state,
            local,
            error,
            options,
        })
    }
}

/// Encodes an address, or none.
pub fn address_to_words(address: Option<Address>) -> [u64; ADDRESS_WORDS] {
    match address {
        None => [NONE; ADDRESS_WORDS],
        Some(Address::Vsock(SockAddrVm { cid, port, flags })) => {
            [VSOCK, cid.into(), port.into(), flags.into(), 0]
        }
        Some(Address::HyperV(SockAddrHv { vm, service, flags })) => {
            let [a, b] = halves(vm.to_guid_bytes());
            let [c, d] = halves(service.to_guid_bytes());
            [HYPERV | u64::from(flags) << 32, a, b, c, d]
        }
    }
}

/// Decodes an address, or none, which is `Some(None)`. `None` if the words are neither.
pub fn address_from_words(words: &[u64; ADDRESS_WORDS]) -> Option<Option<Address>> {
    let [kind, a, b, c, d] = *words;
    match kind & 0xffff_ffff {
        NONE => Some(None),
        VSOCK => Some(Some(Address::Vsock(SockAddrVm {
            cid: u32::try_from(a).ok()?,
            port: u32::try_from(b).ok()?,
            flags: u8::try_from(c).ok()?,
        }))),
        HYPERV => Some(Some(Address::HyperV(SockAddrHv {
            vm: VmId::from_guid_bytes(whole([a, b])),
            service: ServiceId::from_guid_bytes(whole([c, d])),
            flags: u16::try_from(kind >> 32).ok()?,
        }))),
        _ => None,
    }
}

fn halves(bytes: [u8; 16]) -> [u64; 2] {
    let whole = u128::from_ne_bytes(bytes);
    [whole as u64, (whole >> 64) as u64]
}

fn whole([low, high]: [u64; 2]) -> [u8; 16] {
    (u128::from(low) | u128::from(high) << 64).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address() -> impl Strategy<Value = Address> {
        let vsock = any::<(u32, u32, u8)>();
        let hyperv = any::<([u8; 16], [u8; 16], u16)>();
        prop_oneof![
            vsock.prop_map(|(cid, port, flags)| Address::Vsock(SockAddrVm { cid, port, flags })),
            hyperv.prop_map(|(vm, service, flags)| Address::HyperV(SockAddrHv {
                vm: VmId::from_guid_bytes(vm),
                service: ServiceId::from_guid_bytes(service),
                flags,
            })),
        ]
    }

    fn socket() -> impl Strategy<Value = Socket> {
        let state = prop_oneof![
            Just(State::Idle),
            Just(State::Listening),
            Just(State::Connecting),
            address().prop_map(|peer| State::Connected { peer }),
        ];
        let options = any::<(u64, u64, u64, bool)>();
        let timeout = prop::option::of((0..u64::MAX, 0_u32..1_000_000_000));
        let error = prop::option::of(1..4096_i32);
        let local = prop::option::of(address());
        let parts = (any::<bool>(), state, local, error, options, timeout);
        parts.prop_map(|(is_vsock, state, local, error, options, timeout)| {
            let (buffer, buffer_min, buffer_max, connected_suspend) = options;
            let options = Options {
                buffer,
                buffer_min,
                buffer_max,
                connect_timeout: timeout.map(|(s, n)| Duration::new(s, n)),
                connected_suspend,
            };
            let family = if is_vsock {
                Family::Vsock
            } else {
                Family::HyperV
            };
            let error = error.map(Errno::new);
            Socket {
                family,
                state,
                local,
                error,
                options,
            }
        })
    }

    proptest! {
        #[test]
        fn a_socket_survives_encoding_and_decoding(socket in socket()) {
            let words = socket.to_words();
            let again = Socket::from_words(&words).map(|socket| format!("{socket:?}"));
            prop_assert_eq!(again, Some(format!("{socket:?}")));
        }

        #[test]
        fn any_words_are_a_socket_or_none(
            words in prop::array::uniform17(any::<u64>()),
            kinds in prop::array::uniform3(0_u64..5),
        ) {
            let _ = Socket::from_words(&words);
            let mut words = words;
            for (at, kind) in [0, 7, 12].into_iter().zip(kinds) {
                words[at] = kind;
            }
            let _ = Socket::from_words(&words);
        }
    }
}
