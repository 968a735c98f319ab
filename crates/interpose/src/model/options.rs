//! The socket options of both families: which there are, their bounds and their bytes.

use std::time::Duration;

use hvsock_address::HVSOCKET_CONNECT_TIMEOUT_MAX;

use super::{Errno, Family};

/// `SO_VM_SOCKETS_*` of vm_sockets.h.
const BUFFER_SIZE: i32 = 0;
const BUFFER_MIN_SIZE: i32 = 1;
const BUFFER_MAX_SIZE: i32 = 2;
const CONNECT_TIMEOUT_OLD: i32 = 6;
const CONNECT_TIMEOUT_NEW: i32 = 8;

/// `HVSOCKET_*` of hvsocket.h that have a meaning here. The numbers of the other two are those of
/// `SO_REUSEADDR` and `SO_RCVBUF`, which the kernel takes.
const HV_CONNECT_TIMEOUT: i32 = 1;
const HV_CONNECTED_SUSPEND: i32 = 4;

/// The kernel's defaults (af_vsock.c).
const DEFAULT_BUFFER: u64 = 256 * 1024;
const DEFAULT_BUFFER_MIN: u64 = 128;
const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Connect timeouts above this one fail with `ERANGE`. The kernel's bound depends on its timer frequency.
const MAX_TIMEOUT_SECONDS: i64 = i64::MAX / 1000 - 1;

/// The values of a socket's options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    pub(super) buffer: u64,
    pub(super) buffer_min: u64,
    pub(super) buffer_max: u64,
    pub(super) connect_timeout: Option<Duration>,
    /// `HVSOCKET_CONNECTED_SUSPEND`: keep the connection while its partition is paused.
    pub connected_suspend: bool,
}

/// The answer to `getsockopt` or `setsockopt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionAnswer {
    /// The kernel answers: the option is one of the Unix socket's.
    Native,
    /// `getsockopt`: these bytes. `setsockopt`: done (no bytes).
    Value(Vec<u8>),
    /// The call fails.
    Error(Errno),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            buffer: DEFAULT_BUFFER,
            buffer_min: DEFAULT_BUFFER_MIN,
            buffer_max: DEFAULT_BUFFER,
            connect_timeout: None,
            connected_suspend: false,
        }
    }
}

impl Options {
    /// How long a connect may take. `None`: the broker's default, as `AF_HYPERV` has it without the option.
    pub fn connect_timeout(&self, family: Family) -> Option<Duration> {
        match family {
            Family::Vsock => Some(self.connect_timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT)),
            Family::HyperV => self.connect_timeout,
        }
    }

    /// The connect timeout that the program has set.
    pub fn chosen_connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }

    /// Answers `getsockopt` for a buffer of `space` bytes, but for `SO_ERROR`.
    pub fn get(&self, family: Family, level: i32, name: i32, space: usize) -> OptionAnswer {
        let int = |value: i32| {
            let mut bytes = value.to_ne_bytes().to_vec();
            bytes.truncate(space);
            OptionAnswer::Value(bytes)
        };
        match (family, level, name) {
            (_, libc::SOL_SOCKET, libc::SO_DOMAIN) => int(family.number().into()),
            (_, libc::SOL_SOCKET, libc::SO_PROTOCOL) => int(family.protocol()),
            (Family::HyperV, libc::SOL_SOCKET, HV_CONNECT_TIMEOUT) => {
                let ms = self.connect_timeout.map_or(0, |it| it.as_millis());
                int(i32::try_from(ms).unwrap_or(i32::MAX))
            }
            (_, libc::SOL_SOCKET, _) => OptionAnswer::Native,
            (Family::Vsock, level, name) if level == family.option_level() => {
                let value = match name {
                    BUFFER_SIZE => self.buffer.to_ne_bytes().to_vec(),
                    BUFFER_MIN_SIZE => self.buffer_min.to_ne_bytes().to_vec(),
                    BUFFER_MAX_SIZE => self.buffer_max.to_ne_bytes().to_vec(),
                    CONNECT_TIMEOUT_OLD | CONNECT_TIMEOUT_NEW => {
                        timeval(self.connect_timeout.unwrap_or(DEFAULT_CONNECT_TIMEOUT))
                    }
                    _ => return OptionAnswer::Error(Errno::ENOPROTOOPT),
                };
                match space < value.len() {
                    true => OptionAnswer::Error(Errno::EINVAL),
                    false => OptionAnswer::Value(value),
                }
            }
            _ => OptionAnswer::Error(Errno::ENOPROTOOPT),
        }
    }

    /// Answers `setsockopt`. `value` is what the program gave, or its first 128 bytes.
    pub fn set(&mut self, family: Family, level: i32, name: i32, value: &[u8]) -> OptionAnswer {
        let done = match (family, level, name) {
            (Family::HyperV, libc::SOL_SOCKET, HV_CONNECT_TIMEOUT) => self.set_hv_timeout(value),
            (Family::HyperV, libc::SOL_SOCKET, HV_CONNECTED_SUSPEND) => {
                leading(value).map(|value| self.connected_suspend = u32::from_ne_bytes(value) != 0)
            }
            (_, libc::SOL_SOCKET, _) => return OptionAnswer::Native,
            (Family::Vsock, level, name) if level == family.option_level() => {
                self.set_vsock(name, value)
            }
            _ => Err(Errno::ENOPROTOOPT),
        };
        match done {
            Ok(()) => OptionAnswer::Value(Vec::new()),
            Err(errno) => OptionAnswer::Error(errno),
        }
    }

    fn set_hv_timeout(&mut self, value: &[u8]) -> Result<(), Errno> {
        let ms = u32::from_ne_bytes(leading(value)?);
        if ms > HVSOCKET_CONNECT_TIMEOUT_MAX {
            return Err(Errno::EINVAL);
        }
        self.connect_timeout = (ms != 0).then(|| Duration::from_millis(ms.into()));
        Ok(())
    }

    fn set_vsock(&mut self, name: i32, value: &[u8]) -> Result<(), Errno> {
        let size = || leading(value).map(u64::from_ne_bytes);
        match name {
            BUFFER_SIZE => self.set_buffer(size()?),
            BUFFER_MIN_SIZE => {
                self.buffer_min = size()?;
                self.set_buffer(self.buffer);
            }
            BUFFER_MAX_SIZE => {
                self.buffer_max = size()?;
                self.set_buffer(self.buffer);
            }
            CONNECT_TIMEOUT_OLD | CONNECT_TIMEOUT_NEW => {
                let both: [u8; 16] = leading(value)?;
                let (seconds, micros) = both.split_at(8);
                let seconds = leading(seconds).map(i64::from_ne_bytes)?;
                let micros = leading(micros).map(i64::from_ne_bytes)?;
                if !(0..MAX_TIMEOUT_SECONDS).contains(&seconds) || !(0..1_000_000).contains(&micros)
                {
                    return Err(Errno::ERANGE);
                }
                let timeout = Duration::from_secs(seconds.unsigned_abs())
                    + Duration::from_micros(micros.unsigned_abs());
                self.connect_timeout = (!timeout.is_zero()).then_some(timeout);
            }
            _ => return Err(Errno::ENOPROTOOPT),
        }
        Ok(())
    }

    /// The maximum is applied before the minimum, as in the kernel.
    fn set_buffer(&mut self, size: u64) {
        self.buffer = size.min(self.buffer_max).max(self.buffer_min);
    }
}

/// A `struct timeval` of two 64-bit numbers.
fn timeval(duration: Duration) -> Vec<u8> {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let micros = i64::from(duration.subsec_micros());
    [seconds.to_ne_bytes(), micros.to_ne_bytes()].concat()
}

/// The first bytes of an option's value. `EINVAL` if there are too few.
fn leading<const N: usize>(value: &[u8]) -> Result<[u8; N], Errno> {
    value.first_chunk().copied().ok_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VSOCK: i32 = 40;

    fn get(options: &Options, name: i32, space: usize) -> OptionAnswer {
        options.get(Family::Vsock, VSOCK, name, space)
    }

    fn set(options: &mut Options, name: i32, value: &[u8]) -> OptionAnswer {
        options.set(Family::Vsock, VSOCK, name, value)
    }

    fn value(bytes: &[u8]) -> OptionAnswer {
        OptionAnswer::Value(bytes.to_vec())
    }

    const DONE: OptionAnswer = OptionAnswer::Value(Vec::new());

    #[test]
    fn the_buffer_sizes_have_the_kernels_defaults_and_bounds() {
        let mut options = Options::default();
        assert_eq!(get(&options, 0, 8), value(&262_144_u64.to_ne_bytes()));
        assert_eq!(get(&options, 1, 8), value(&128_u64.to_ne_bytes()));
        assert_eq!(get(&options, 2, 99), value(&262_144_u64.to_ne_bytes()));
        assert_eq!(get(&options, 0, 7), OptionAnswer::Error(Errno::EINVAL));
        assert_eq!(set(&mut options, 0, &u64::MAX.to_ne_bytes()), DONE);
        assert_eq!(get(&options, 0, 8), value(&262_144_u64.to_ne_bytes()));
        assert_eq!(set(&mut options, 2, &4096_u64.to_ne_bytes()), DONE);
        assert_eq!(get(&options, 0, 8), value(&4096_u64.to_ne_bytes()));
        assert_eq!(set(&mut options, 1, &8192_u64.to_ne_bytes()), DONE);
        assert_eq!(get(&options, 0, 8), value(&8192_u64.to_ne_bytes()));
        let short = set(&mut options, 0, &[0; 7]);
        assert_eq!(short, OptionAnswer::Error(Errno::EINVAL));
    }

    #[test]
    fn the_connect_timeout_is_a_timeval_of_which_zero_is_the_default() {
        let mut options = Options::default();
        let two = [2_i64.to_ne_bytes(), 0_i64.to_ne_bytes()].concat();
        for name in [6, 8] {
            assert_eq!(get(&options, name, 16), value(&two));
        }
        let odd = [7_i64.to_ne_bytes(), 500_000_i64.to_ne_bytes()].concat();
        assert_eq!(set(&mut options, 6, &odd), DONE);
        assert_eq!(get(&options, 8, 16), value(&odd));
        let timeout = options.connect_timeout(Family::Vsock);
        assert_eq!(timeout, Some(Duration::from_millis(7500)));
        assert_eq!(set(&mut options, 8, &[0; 16]), DONE);
        assert_eq!(get(&options, 6, 16), value(&two));
        for (seconds, micros) in [(-1, 0), (0, -1), (0, 1_000_000), (i64::MAX, 0)] {
            let bytes = [i64::to_ne_bytes(seconds), i64::to_ne_bytes(micros)].concat();
            let answer = set(&mut options, 6, &bytes);
            assert_eq!(answer, OptionAnswer::Error(Errno::ERANGE), "{seconds}");
        }
    }

    #[test]
    fn options_that_virtio_does_not_have_are_unknown() {
        let mut options = Options::default();
        for name in [3, 4, 5, 7, 9, -1] {
            let unknown = OptionAnswer::Error(Errno::ENOPROTOOPT);
            assert_eq!(get(&options, name, 64), unknown);
            assert_eq!(set(&mut options, name, &[0; 64]), unknown);
        }
        // The other family's level.
        let other = options.get(Family::HyperV, VSOCK, 0, 8);
        assert_eq!(other, OptionAnswer::Error(Errno::ENOPROTOOPT));
    }

    #[test]
    fn a_socket_says_which_family_and_protocol_it_has() {
        let options = Options::default();
        let get = |family, name, space| options.get(family, libc::SOL_SOCKET, name, space);
        let int = |number: i32| value(&number.to_ne_bytes());
        assert_eq!(get(Family::Vsock, libc::SO_DOMAIN, 4), int(40));
        assert_eq!(get(Family::HyperV, libc::SO_DOMAIN, 4), int(34));
        assert_eq!(get(Family::Vsock, libc::SO_PROTOCOL, 4), int(0));
        assert_eq!(get(Family::HyperV, libc::SO_PROTOCOL, 4), int(1));
        let cut = get(Family::Vsock, libc::SO_DOMAIN, 2);
        assert_eq!(cut, value(&40_i32.to_ne_bytes()[..2]));
        for name in [libc::SO_TYPE, libc::SO_SNDBUF, libc::SO_RCVBUF] {
            assert_eq!(get(Family::HyperV, name, 4), OptionAnswer::Native);
        }
    }

    #[test]
    fn hyperv_has_its_options_at_the_level_of_the_socket() {
        let mut options = Options::default();
        let hv = Family::HyperV;
        assert_eq!(options.set(hv, 1, 1, &1500_u32.to_ne_bytes()), DONE);
        let timeout = options.connect_timeout(hv);
        assert_eq!(timeout, Some(Duration::from_millis(1500)));
        let bytes = 1500_u32.to_ne_bytes();
        assert_eq!(options.get(hv, 1, 1, 64), value(&bytes));
        assert_eq!(options.get(Family::Vsock, 1, 1, 64), OptionAnswer::Native);
        for short in [&[][..], &bytes[..2]] {
            let invalid = OptionAnswer::Error(Errno::EINVAL);
            assert_eq!(options.set(hv, 1, 1, short), invalid);
            assert_eq!(options.set(hv, 1, 4, short), invalid);
        }
        assert_eq!(options.set(hv, 1, 1, &0_u32.to_ne_bytes()), DONE);
        assert_eq!(options.connect_timeout(hv), None);
        let long = options.set(hv, 1, 1, &300_001_u32.to_ne_bytes());
        assert_eq!(long, OptionAnswer::Error(Errno::EINVAL));
        assert_eq!(options.set(hv, 1, 4, &1_u32.to_ne_bytes()), DONE);
        assert!(options.connected_suspend);
        for name in [2, 8] {
            assert_eq!(
                options.set(hv, 1, name, &[1, 0, 0, 0]),
                OptionAnswer::Native
            );
        }
        // On AF_VSOCK these are SO_DEBUG and SO_ERROR.
        for name in [1, 4] {
            let answer = options.set(Family::Vsock, 1, name, &[1, 0, 0, 0]);
            assert_eq!(answer, OptionAnswer::Native);
        }
    }

    proptest! {
        #[test]
        fn any_option_of_any_length_has_an_answer(
            level in prop_oneof![Just(1), Just(40), any::<i32>()],
            name in prop_oneof![0..10, any::<i32>()],
            value in prop::collection::vec(any::<u8>(), 0..40),
            hyperv in any::<bool>(), space in 0_usize..40,
        ) {
            let family = if hyperv { Family::HyperV } else { Family::Vsock };
            let mut options = Options::default();
            let _ = options.set(family, level, name, &value);
            if let OptionAnswer::Value(bytes) = options.get(family, level, name, space) {
                prop_assert!(bytes.len() <= space);
            }
        }
    }
}
