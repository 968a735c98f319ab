//! The system's sockets for forwarding: TCP and Unix, connected and listening.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;

use super::Address;
use crate::getent::getent;

/// The connect timeout, for all addresses of a name together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout of a name lookup.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How many addresses of a name are tried.
const ADDRESSES: usize = 8;
/// The backlog of a listener.
const BACKLOG: u32 = 128;

/// A connected socket.
#[derive(Debug)]
pub enum Socket {
    /// TCP, with `TCP_NODELAY`.
    Tcp(TcpStream),
    /// A Unix stream socket.
    Unix(UnixStream),
}

impl Socket {
    /// Connects within ten seconds.
    ///
    /// # Errors
    ///
    /// The system's error, `TimedOut`, or `InvalidInput` for [`Address::Ssh`], which only the
    /// guest's agent can reach.
    pub async fn connect(address: &Address) -> io::Result<Self> {
        let connecting = async {
            match address {
                Address::Tcp { host, port } => connect_tcp(host, *port).await,
                Address::Unix(path) => UnixStream::connect(path).await.map(Self::Unix),
                Address::Ssh => Err(only_in_guest()),
            }
        };
        match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "timed out: no answer within {} s",
                    CONNECT_TIMEOUT.as_secs()
                ),
            )),
        }
    }

    fn of_tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        // A remote peer can vanish without closing the connection.
        rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
        Ok(Self::Tcp(stream))
    }

    /// Closes the socket so that its peer sees a reset instead of an end of file, if the system can
    /// report one. TCP can; a Unix socket only if it has unread bytes.
    #[doc(alias = "SO_LINGER")]
    pub fn reset(self) {
        if let Self::Tcp(stream) = &self {
            // On failure the peer sees an end of file, as it would without the attempt.
            let _ = stream.set_zero_linger();
        }
    }
}

async fn connect_tcp(host: &str, port: u16) -> io::Result<Socket> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("`{host}` has no address"));
    for ip in resolve(host).await? {
        match TcpStream::connect(SocketAddr::new(ip, port)).await {
            Ok(stream) => return Socket::of_tcp(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Resolves a host name by the system's configured name services.
async fn resolve(host: &str) -> io::Result<Vec<IpAddr>> {
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    if let Ok(ip) = host.parse() {
        return Ok(vec![ip]);
    }
    let name = host.to_owned();
    let query = move || getent(&["ahosts", &name], RESOLVE_TIMEOUT);
    let found = tokio::task::spawn_blocking(query).await;
    let why = match found.map_err(io::Error::other).flatten() {
        Ok(Some(output)) => return Ok(addresses(&String::from_utf8_lossy(&output))),
        Ok(None) => "unknown host".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => "timed out: no answer".to_owned(),
        Err(error) => format!("cannot run getent: {error}"),
    };
    let text = format!("cannot resolve `{host}`: {why}");
    Err(io::Error::new(io::ErrorKind::NotFound, text))
}

/// The addresses in the output of `getent ahosts`, without duplicates.
fn addresses(output: &str) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for line in output.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Ok(ip) = first.parse()
            && !all.contains(&ip)
            && all.len() < ADDRESSES
        {
            all.push(ip);
        }
    }
    all
}

fn only_in_guest() -> io::Error {
    let text = "`ssh` names the SSH server of a guest; the host has no such address";
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// A listening socket. A Unix socket is accessible to its user only, and its file is removed on drop.
#[derive(Debug)]
pub struct Listener {
    address: Address,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        _file: SocketFile,
    },
}

impl Listener {
    /// Listens. A stale Unix socket file, which no process listens on, is replaced.
    ///
    /// # Errors
    ///
    /// The system's error, or `InvalidInput` for [`Address::Ssh`].
    pub async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } => bind_tcp(host, *port).await,
            Address::Unix(path) => bind_unix(path).await,
            Address::Ssh => Err(only_in_guest()),
        }
    }

    /// The address, with the chosen port.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Waits for a connection. Returns it with a description of its peer, for logs.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub async fn accept(&self) -> io::Result<(Socket, String)> {
        match &self.kind {
            Kind::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Socket::of_tcp(stream)?, peer.to_string()))
            }
            Kind::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                let who = match stream.peer_cred() {
                    Ok(peer) => match peer.pid() {
                        Some(pid) => format!("process {pid} of user {}", peer.uid()),
                        None => format!("user {}", peer.uid()),
                    },
                    Err(_) => "unknown process".to_owned(),
                };
                Ok((Socket::Unix(stream), who))
            }
        }
    }

    /// Waits after a failed accept, because the reason (such as too many open files) persists.
    pub(crate) async fn back_off() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn bind_tcp(host: &str, port: u16) -> io::Result<Listener> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("`{host}` has no address"));
    for ip in resolve(host).await? {
        match TcpListener::bind(SocketAddr::new(ip, port)).await {
            Ok(listener) => {
                let bound = listener.local_addr()?;
                let address = Address::Tcp {
                    host: bound.ip().to_string(),
                    port: bound.port(),
                };
                let kind = Kind::Tcp(listener);
                return Ok(Listener { address, kind });
            }
            // A listener on the second address would not be the one that was requested.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn bind_unix(path: &Path) -> io::Result<Listener> {
    let socket = match listening(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket =
                |path| fs::symlink_metadata(path).map(|meta| meta.file_type().is_socket());
            if !is_socket(path)? {
                let text = format!("{} exists and is not a socket", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            match UnixStream::connect(path).await {
                Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path)?;
                    listening(path)?
                }
                _ => return Err(error),
            }
        }
        socket => socket?,
    };
    let file = SocketFile::of(path)?;
    let listener = std::os::unix::net::UnixListener::from(socket);
    Ok(Listener {
        address: Address::Unix(path.to_owned()),
        kind: Kind::Unix {
            listener: UnixListener::from_std(listener)?,
            _file: file,
        },
    })
}

fn listening(path: &Path) -> io::Result<OwnedFd> {
    hvsock_sys::stream::listen_at_new(path, 0o600, BACKLOG)
}

/// The file of a Unix socket. It is removed on drop unless another file has replaced it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    file: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            file: (meta.dev(), meta.ino()),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let meta = fs::symlink_metadata(&self.path);
        if meta.is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file) {
            // An error means that another process has removed it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn the_output_of_getent_is_parsed() {
        let output = "::1             STREAM localhost\n::1             DGRAM  \n\
                    127.0.0.1       STREAM \nnonsense\n";
        let expected: [IpAddr; 2] = [Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()];
        assert_eq!(addresses(output), expected);
        let many: String = (0..100).map(|n| format!("10.0.0.{n} STREAM\n")).collect();
        assert_eq!(addresses(&many).len(), ADDRESSES);
    }

    #[tokio::test]
    async fn a_tcp_reset_is_not_an_end_of_file() {
        let address = "tcp:127.0.0.1:0".parse().unwrap();
        let listener = Listener::bind(&address).await.unwrap();
        let mut client = Socket::connect(listener.address()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        server.reset();
        let error = client.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_unix_socket_is_private_and_its_file_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let address = Address::unix(&path).unwrap();
        let listener = Listener::bind(&address).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (client, accepted) = tokio::join!(Socket::connect(&address), listener.accept());
        let (mut server, who) = accepted.unwrap();
        assert!(who.contains(&std::process::id().to_string()), "{who}");
        server.write_all(b"x").await.unwrap();
        assert_eq!(client.unwrap().read(&mut [0]).await.unwrap(), 1);
        let taken = Listener::bind(&address).await.unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_file_is_replaced_and_another_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let address = Address::unix(&path).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let second = Listener::bind(&address).await.unwrap();
        // Another file takes the path: the listener must not remove it.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(second);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let error = Listener::bind(&address).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
