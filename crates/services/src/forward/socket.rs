//! Sockets of the system as forwarding uses them: TCP and Unix, connected and listening.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;

use super::Address;

/// How long a connect may take, all addresses of a name together.
const CONNECTING: Duration = Duration::from_secs(10);
/// How long looking up a name may take.
const LOOK_UP: Duration = Duration::from_secs(5);
/// How much a look-up may say.
const LOOKED_UP: u64 = 64 * 1024;
/// How many addresses of a name are tried.
const ADDRESSES: usize = 8;
/// How many connections wait to be accepted.
const BACKLOG: i32 = 128;

/// A connected socket.
#[derive(Debug)]
pub enum Socket {
    /// TCP, which sends what it has at once.
    Tcp(TcpStream),
    /// A Unix stream socket.
    Unix(UnixStream),
}

impl Socket {
    /// Connects, within ten seconds. To [`Address::Ssh`] it cannot: that is for the guest's half.
    pub async fn connect(address: &Address) -> io::Result<Self> {
        let connecting = async {
            match address {
                Address::Tcp { host, port } => connect_tcp(host, *port).await,
                Address::Unix(path) => UnixStream::connect(path).await.map(Self::Unix),
                Address::Ssh => Err(only_in_guest()),
            }
        };
        match timeout(CONNECTING, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("nobody answered within {} seconds", CONNECTING.as_secs()),
            )),
        }
    }

    fn of_tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        // Beyond this machine a peer can vanish without a word.
        rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
        Ok(Self::Tcp(stream))
    }

    /// Closes it so that its peer sees an error and no end, where the system can tell one: TCP can; a Unix
    /// socket only where bytes of the peer's were not read.
    pub fn reset(self) {
        if let Self::Tcp(stream) = &self {
            // Without it the peer sees an end: no worse than without trying.
            let _ = stream.set_zero_linger();
        }
    }
}

async fn connect_tcp(host: &str, port: u16) -> io::Result<Socket> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("`{host}` has no address"));
    for ip in look_up(host).await? {
        match TcpStream::connect(SocketAddr::new(ip, port)).await {
            Ok(stream) => return Socket::of_tcp(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The addresses of a host. Names are left to `getent`, which knows whatever this system is set up to ask, while a
/// static program knows nothing of it.
async fn look_up(host: &str) -> io::Result<Vec<IpAddr>> {
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    if let Ok(ip) = host.parse() {
        return Ok(vec![ip]);
    }
    let unknown = |why: &dyn std::fmt::Display| {
        let text = format!("cannot look up `{host}`: {why}");
        io::Error::new(io::ErrorKind::NotFound, text)
    };
    let mut child = tokio::process::Command::new("getent")
        .args(["ahosts", host])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| unknown(&format!("getent does not run: {error}")))?;
    let mut said = String::new();
    let asking = async {
        if let Some(output) = child.stdout.take() {
            output.take(LOOKED_UP).read_to_string(&mut said).await?;
        }
        child.wait().await
    };
    match timeout(LOOK_UP, asking).await {
        Ok(Ok(status)) if status.success() => Ok(addresses(&said)),
        Ok(Ok(_)) => Err(unknown(&"nobody knows it")),
        Ok(Err(error)) => Err(unknown(&error)),
        Err(_) => Err(unknown(&"no answer")),
    }
}

/// The addresses in the output of `getent ahosts`, each once.
fn addresses(said: &str) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for line in said.lines() {
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
    let text = "`ssh` is the SSH server of a guest";
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

/// A listening socket. A Unix one is for its user only, and gone from its folder when dropped.
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
        _place: Place,
    },
}

impl Listener {
    /// Listens. A Unix socket that nobody listens at any more is replaced.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp { host, port } => bind_tcp(host, *port).await,
            Address::Unix(path) => bind_unix(path).await,
            Address::Ssh => Err(only_in_guest()),
        }
    }

    /// Where, with the port that was chosen.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Waits for a connection; with it, who connected, for logs.
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
                    Err(_) => "somebody".to_owned(),
                };
                Ok((Socket::Unix(stream), who))
            }
        }
    }

    /// Waits after a failed accept: what is wrong (no descriptors, say) is so for a while.
    pub(crate) async fn rest() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn bind_tcp(host: &str, port: u16) -> io::Result<Listener> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("`{host}` has no address"));
    for ip in look_up(host).await? {
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
            // Where the first address is taken, the second is not what was meant.
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
                let text = format!("{} is there, and is no socket", path.display());
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
    let place = Place::of(path)?;
    let listener = std::os::unix::net::UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(Listener {
        address: Address::Unix(path.to_owned()),
        kind: Kind::Unix {
            listener: UnixListener::from_std(listener)?,
            _place: place,
        },
    })
}

fn listening(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux makes the file with the mode that the socket has: nobody else gets in meanwhile.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// The file of a Unix socket, which is removed with it unless another has taken its place.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    file: (u64, u64),
}

impl Place {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            file: (meta.dev(), meta.ino()),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let meta = fs::symlink_metadata(&self.path);
        if meta.is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file) {
            // Whoever removed it meanwhile did what is to be done.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[test]
    fn what_getent_says_is_read() {
        let said = "::1             STREAM localhost\n::1             DGRAM  \n\
                    127.0.0.1       STREAM \nnonsense\n";
        let expected: [IpAddr; 2] = [Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()];
        assert_eq!(addresses(said), expected);
        let many: String = (0..100).map(|n| format!("10.0.0.{n} STREAM\n")).collect();
        assert_eq!(addresses(&many).len(), ADDRESSES);
    }

    #[tokio::test]
    async fn a_reset_of_tcp_is_no_end() {
        let address = "tcp:127.0.0.1:0".parse().unwrap();
        let listener = Listener::bind(&address).await.unwrap();
        let mut client = Socket::connect(listener.address()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        server.reset();
        let error = client.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_unix_socket_is_its_users_own_and_leaves_nothing_behind() {
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
    async fn a_socket_that_nobody_listens_at_is_replaced_and_another_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let address = Address::unix(&path).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let second = Listener::bind(&address).await.unwrap();
        // Somebody puts another file there: it is not ours to remove.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(second);
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let error = Listener::bind(&address).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
