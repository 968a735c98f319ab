//! Bytes of an address or an option, without memory of the heap.

use hvsock_interpose::model::Address;
use rustix::io::Errno;

use crate::abi::memory::MOST;

/// At most [`MOST`] bytes.
#[derive(Clone, Copy)]
pub struct Name {
    bytes: [u8; MOST],
    len: usize,
}

impl Name {
    /// So many zero bytes.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there are more than an address may have, as the kernel says.
    pub fn with_len(len: u32) -> Result<Self, Errno> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        (len <= MOST)
            .then_some(Self {
                bytes: [0; MOST],
                len,
            })
            .ok_or(Errno::INVAL)
    }

    /// These bytes; those beyond [`MOST`] are left out.
    pub fn of(bytes: &[u8]) -> Self {
        let len = bytes.len().min(MOST);
        let mut name = Self {
            bytes: [0; MOST],
            len,
        };
        for (to, from) in name.bytes.iter_mut().zip(bytes) {
            *to = *from;
        }
        name
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.len).unwrap_or_default()
    }
}

impl From<Address> for Name {
    fn from(address: Address) -> Self {
        Self::of(&address.to_bytes())
    }
}
