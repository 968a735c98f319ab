//! The header of every packet (virtio 1.2, section 5.10.6).

/// Size of an encoded [`Header`] in bytes.
pub const HEADER_LEN: usize = 44;

/// `struct virtio_vsock_hdr`, decoded but not validated.
#[doc(alias = "virtio_vsock_hdr")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The sender's context id.
    pub src_cid: u64,
    /// The receiver's context id.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// Bytes of payload that follow.
    pub len: u32,
    /// The field `type`: a [`SocketKind`].
    pub kind: u16,
    /// The field `op`: an [`Operation`].
    pub op: u16,
    /// [`shutdown`] or [`message`] bits.
    pub flags: u32,
    /// Size of the sender's receive buffer for this connection, in bytes.
    pub buf_alloc: u32,
    /// Bytes that the sender has forwarded to its reader so far, modulo 2^32.
    pub fwd_cnt: u32,
}

/// The operation of a packet (`VIRTIO_VSOCK_OP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Operation {
    /// `VIRTIO_VSOCK_OP_REQUEST`
    Request = 1,
    /// `VIRTIO_VSOCK_OP_RESPONSE`
    Response = 2,
    /// `VIRTIO_VSOCK_OP_RST`
    Reset = 3,
    /// `VIRTIO_VSOCK_OP_SHUTDOWN`
    Shutdown = 4,
    /// `VIRTIO_VSOCK_OP_RW`
    Data = 5,
    /// `VIRTIO_VSOCK_OP_CREDIT_UPDATE`
    CreditUpdate = 6,
    /// `VIRTIO_VSOCK_OP_CREDIT_REQUEST`
    CreditRequest = 7,
}

/// The socket type of a connection (`VIRTIO_VSOCK_TYPE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum SocketKind {
    /// `VIRTIO_VSOCK_TYPE_STREAM`: a byte stream.
    Stream = 1,
    /// `VIRTIO_VSOCK_TYPE_SEQPACKET`: a sequence of messages.
    Seqpacket = 2,
}

/// Bits of [`Header::flags`] of an [`Operation::Shutdown`].
pub mod shutdown {
    /// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: the sender will not receive any more data.
    pub const RECEIVE: u32 = 1;
    /// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender will not send any more data (half-close).
    pub const SEND: u32 = 2;
    /// Both directions: closes the connection.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// Bits of [`Header::flags`] of an [`Operation::Data`] of a [`SocketKind::Seqpacket`].
pub mod message {
    /// `VIRTIO_VSOCK_SEQ_EOM`: this packet ends a message.
    pub const END: u32 = 1;
    /// `VIRTIO_VSOCK_SEQ_EOR`: this packet ends a record, which the sender marked with `MSG_EOR`.
    pub const RECORD: u32 = 2;
}

/// What ends with a packet's last byte. Both are false in a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageEnd {
    /// A message ends (`VIRTIO_VSOCK_SEQ_EOM`).
    pub message: bool,
    /// A record ends, which the sender marked with `MSG_EOR` (`VIRTIO_VSOCK_SEQ_EOR`).
    pub record: bool,
}

/// Feature bits of the device.
pub mod features {
    /// `VIRTIO_VSOCK_F_STREAM`
    pub const STREAM: u64 = 1 << 0;
    /// `VIRTIO_VSOCK_F_SEQPACKET`
    pub const SEQPACKET: u64 = 1 << 1;
    /// `VIRTIO_F_INDIRECT_DESC`
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `VIRTIO_F_EVENT_IDX`
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VIRTIO_F_VERSION_1`
    pub const VERSION_1: u64 = 1 << 32;
}

impl Header {
    /// Decodes a header. Any 44 bytes are one.
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Encodes a header.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut rest = bytes.as_mut_slice();
        put(&mut rest, &self.src_cid.to_le_bytes());
        put(&mut rest, &self.dst_cid.to_le_bytes());
        put(&mut rest, &self.src_port.to_le_bytes());
        put(&mut rest, &self.dst_port.to_le_bytes());
        put(&mut rest, &self.len.to_le_bytes());
        put(&mut rest, &self.kind.to_le_bytes());
        put(&mut rest, &self.op.to_le_bytes());
        put(&mut rest, &self.flags.to_le_bytes());
        put(&mut rest, &self.buf_alloc.to_le_bytes());
        put(&mut rest, &self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The operation; `None` if the number is unknown.
    pub fn operation(&self) -> Option<Operation> {
        Some(match self.op {
            1 => Operation::Request,
            2 => Operation::Response,
            3 => Operation::Reset,
            4 => Operation::Shutdown,
            5 => Operation::Data,
            6 => Operation::CreditUpdate,
            7 => Operation::CreditRequest,
            _ => return None,
        })
    }

    /// The socket type; `None` if the number is unknown.
    pub fn socket_kind(&self) -> Option<SocketKind> {
        Some(match self.kind {
            1 => SocketKind::Stream,
            2 => SocketKind::Seqpacket,
            _ => return None,
        })
    }
}

/// Splits off the next `N` bytes. The caller passes enough.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let mut field = [0; N];
    if let Some((now, later)) = rest.split_first_chunk::<N>() {
        field = *now;
        *rest = later;
    }
    field
}

fn put(rest: &mut &mut [u8], field: &[u8]) {
    let (now, later) = std::mem::take(rest).split_at_mut(field.len());
    now.copy_from_slice(field);
    *rest = later;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_have_the_offsets_of_the_specification() {
        let header = Header {
            src_cid: 0x0807_0605_0403_0201,
            dst_cid: 0x100f_0e0d_0c0b_0a09,
            src_port: 0x1413_1211,
            dst_port: 0x1817_1615,
            len: 0x1c1b_1a19,
            kind: 0x1e1d,
            op: 0x201f,
            flags: 0x2423_2221,
            buf_alloc: 0x2827_2625,
            fwd_cnt: 0x2c2b_2a29,
        };
        let counted: Vec<u8> = (1..=44).collect();
        assert_eq!(header.encode().as_slice(), counted);
    }

    #[test]
    fn operations_and_socket_types_have_the_numbers_of_the_specification() {
        for number in 0..=u16::MAX {
            let header = Header {
                op: number,
                kind: number,
                ..Header::default()
            };
            let op = header.operation().map(|op| op as u16);
            assert_eq!(op, (1..=7).contains(&number).then_some(number));
            let kind = header.socket_kind().map(|kind| kind as u16);
            assert_eq!(kind, (1..=2).contains(&number).then_some(number));
        }
    }

    proptest! {
        #[test]
        fn any_44_bytes_decode_and_encode_to_themselves(bytes in any::<[u8; 32]>(), more in any::<[u8; 12]>()) {
            let mut all = [0; HEADER_LEN];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&more);
            prop_assert_eq!(Header::decode(&all).encode(), all);
        }
    }
}
