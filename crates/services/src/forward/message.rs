//! Length-prefixed messages on a raw stream.

use std::io;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// The largest message, in bytes.
const MAX_MESSAGE: u32 = 65_536;

/// Sends a message.
pub(crate) async fn send<W, M>(mut to: W, message: &M) -> io::Result<()>
where
    W: AsyncWrite + Unpin,
    M: Message,
{
    let length = message.encoded_len();
    let prefix = u32::try_from(length)
        .ok()
        .filter(|prefix| *prefix <= MAX_MESSAGE);
    let prefix =
        prefix.ok_or_else(|| broken(format!("a message of {length} bytes is too long")))?;
    let mut bytes = Vec::with_capacity(4 + length);
    bytes.extend_from_slice(&prefix.to_le_bytes());
    message.encode_raw(&mut bytes);
    to.write_all(&bytes).await
}

/// Receives one message and reads no byte beyond it. Returns `None` if the stream ends before the
/// message begins.
pub(crate) async fn receive<R, M>(mut from: R) -> io::Result<Option<M>>
where
    R: AsyncRead + Unpin,
    M: Message + Default,
{
    let mut length = [0; 4];
    if from.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut length[1..]).await?;
    let length = u32::from_le_bytes(length);
    if length > MAX_MESSAGE {
        return Err(broken(format!("a message of {length} bytes is too long")));
    }
    let mut bytes = Vec::new();
    // Memory grows with the received bytes, not with the claimed length.
    let count = (&mut from)
        .take(length.into())
        .read_to_end(&mut bytes)
        .await?;
    if count < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    M::decode(bytes.as_slice())
        .map(Some)
        .map_err(|error| broken(format!("cannot decode a message: {error}")))
}

fn broken(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::forward::Arrival;

    fn arrival() -> Arrival {
        Arrival {
            token: vec![7; 16].into(),
            from: "127.0.0.1:1".to_owned(),
        }
    }

    #[tokio::test]
    async fn messages_are_received_in_order_and_following_bytes_are_left() {
        let mut bytes = Vec::new();
        send(&mut bytes, &arrival()).await.unwrap();
        send(&mut bytes, &Arrival::default()).await.unwrap();
        bytes.extend_from_slice(b"raw");
        let mut rest = bytes.as_slice();
        assert_eq!(receive(&mut rest).await.unwrap(), Some(arrival()));
        assert_eq!(receive(&mut rest).await.unwrap(), Some(Arrival::default()));
        assert_eq!(rest, b"raw");
        assert!(receive::<_, Arrival>(&b""[..]).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_truncated_message_is_an_error() {
        let mut bytes = Vec::new();
        send(&mut bytes, &arrival()).await.unwrap();
        for end in 1..bytes.len() {
            let error = receive::<_, Arrival>(&bytes[..end]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{end}");
        }
    }

    #[tokio::test]
    async fn an_oversized_or_invalid_message_is_an_error() {
        let long = [0x01, 0x00, 0x01, 0x00];
        let not_one = [2, 0, 0, 0, 0xff, 0xff];
        for bytes in [&long[..], &not_one] {
            let error = receive::<_, Arrival>(bytes).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let mut huge = arrival();
        huge.from = "a".repeat(MAX_MESSAGE as usize);
        assert!(send(&mut Vec::new(), &huge).await.is_err());
    }
}
