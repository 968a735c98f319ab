//! `AsyncRead` and `AsyncWrite` for a connection and its halves, which all borrow the connection.

/// Implements `AsyncRead` for a type that is `AsRef<HvStream>`.
macro_rules! async_read {
    ($type:ty) => {
        impl tokio::io::AsyncRead for $type {
            fn poll_read(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buffer: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                (*self).as_ref().poll_read_ref(cx, buffer)
            }
        }
    };
}

/// Implements `AsyncWrite` for a type that is `AsRef<HvStream>`.
macro_rules! async_write {
    ($type:ty) => {
        impl tokio::io::AsyncWrite for $type {
            fn poll_write(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bytes: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                let from = crate::backend::WriteFrom::One(bytes);
                (*self).as_ref().poll_send(cx, from)
            }

            fn poll_write_vectored(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                slices: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                let from = crate::backend::WriteFrom::Many(slices);
                (*self).as_ref().poll_send(cx, from)
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::task::Poll::Ready(Ok(()))
            }

            fn poll_shutdown(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::task::Poll::Ready((*self).as_ref().shutdown_write())
            }
        }
    };
}

pub(super) use {async_read, async_write};
