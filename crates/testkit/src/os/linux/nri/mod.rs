//! A scripted runtime for NRI plugins: it speaks the multiplexed ttRPC of containerd on a Unix socket, and sends
//! and checks exactly what a test says.
//!
//! It follows the sources of `containerd/nri` (`pkg/net/multiplex`, `pkg/adaptation`) and `containerd/ttrpc`
//! and shares no code with the plugin: messages are built from numbers of fields ([`Proto`]). As containerd does,
//! it reads each piece of the multiplexed connection by one call with a buffer of 4 KiB, or of what is left of a
//! long message, and fails if the piece is longer.

mod proto;

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

pub use proto::Proto;

use crate::wait::{self, TIMEOUT};

/// The number of the connection to the plugin's service.
const PLUGIN: u32 = 1;
/// The number of the connection to the runtime's service.
const RUNTIME: u32 = 2;
/// The buffer of a connection in the runtime.
const BUFFER: usize = 4096;

/// A runtime that plugins connect to.
#[derive(Debug)]
pub struct Runtime {
    listener: UnixListener,
    path: PathBuf,
}

impl Runtime {
    /// Listens at `path`.
    ///
    /// # Panics
    /// If that is not possible.
    pub fn listen(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        listener.set_nonblocking(true).expect("non-blocking");
        Self {
            listener,
            path: path.to_owned(),
        }
    }

    /// Accepts a plugin, takes its registration and configures it.
    ///
    /// # Panics
    /// If none comes, or it breaks the protocol.
    pub fn accept(&self) -> Plugin {
        let mut plugin = self.accept_unregistered();
        plugin.registered();
        let configured = plugin.call("Configure", &configuration());
        plugin.events = configured.expect("configured").number(2);
        plugin
    }

    /// Accepts a plugin.
    ///
    /// # Panics
    /// If none comes.
    pub fn accept_unregistered(&self) -> Plugin {
        let socket = wait::until_ok("a plugin", || self.listener.accept());
        Plugin::at(socket.0)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn configuration() -> Proto {
    Proto::new()
        .text(1, "")
        .text(2, "containerd")
        .text(3, "v2.1.0")
        .varint(4, 5000)
        .varint(5, 2000)
        .text(6, "v0.9.0")
}

/// The runtime's side of a connection with a plugin.
#[derive(Debug)]
pub struct Plugin {
    socket: UnixStream,
    stream: u32,
    /// The events that the plugin wants, as bits.
    pub events: u64,
    /// The name and index with which it has registered.
    pub identity: (String, String),
}

impl Plugin {
    /// A plugin at the other end of this socket.
    ///
    /// # Panics
    /// If the socket takes no timeouts.
    pub fn at(socket: UnixStream) -> Self {
        socket.set_nonblocking(false).expect("blocking");
        socket.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        Self {
            socket,
            stream: 0,
            events: 0,
            identity: Default::default(),
        }
    }

    /// Takes the registration.
    ///
    /// # Panics
    /// If it is none.
    pub fn registered(&mut self) {
        let (stream, request) = self.read(RUNTIME, 1);
        assert_eq!(request.string(1), "nri.pkg.api.v1alpha1.Runtime");
        assert_eq!(request.string(2), "RegisterPlugin");
        let register = request.message(3);
        self.identity = (register.string(1), register.string(2));
        self.send(RUNTIME, 2, stream, &Proto::new().bytes(2, &[]));
    }

    /// Calls the plugin. Returns its answer.
    ///
    /// # Errors
    /// The code and text of the plugin's error.
    ///
    /// # Panics
    /// If it breaks the protocol.
    pub fn call(&mut self, method: &str, request: &Proto) -> Result<Proto, (u64, String)> {
        let stream = self.start(method, request);
        let (answered, response) = self.read(PLUGIN, 2);
        assert_eq!(answered, stream, "the stream of the response");
        let status = response.message(1);
        match status.number(1) {
            0 => Ok(response.message(2)),
            code => Err((code, status.string(2))),
        }
    }

    /// Sends a call and does not wait for the answer. Returns its stream.
    pub fn start(&mut self, method: &str, request: &Proto) -> u32 {
        self.stream += if self.stream == 0 { 1 } else { 2 };
        let call = Proto::new()
            .text(1, "nri.pkg.api.v1alpha1.Plugin")
            .text(2, method)
            .bytes(3, request.as_bytes())
            .varint(4, 2_000_000_000);
        self.send(PLUGIN, 1, self.stream, &call);
        self.stream
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// If the plugin has closed the connection.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes)
    }

    /// Waits until the plugin closes the connection.
    ///
    /// # Panics
    /// If it does not.
    pub fn closed(&mut self) {
        let mut rest = Vec::new();
        match self.socket.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
        }
    }

    fn send(&mut self, connection: u32, kind: u8, stream: u32, content: &Proto) {
        let data = content.as_bytes();
        let length = u32::try_from(data.len()).expect("short");
        let mut message = [length.to_be_bytes(), stream.to_be_bytes()].concat();
        message.extend([kind, 0]);
        message.extend(data);
        // The runtime's buffer is flushed at 4 KiB, and what is left of a long message is one piece.
        let (first, rest) = message.split_at(BUFFER.min(message.len()));
        for piece in [first, rest].into_iter().filter(|piece| !piece.is_empty()) {
            let length = u32::try_from(piece.len()).expect("short");
            let header = [connection.to_be_bytes(), length.to_be_bytes()].concat();
            self.socket.write_all(&header).expect("sent");
            self.socket.write_all(piece).expect("sent");
        }
    }

    /// Reads one message of a connection. Returns its stream and content.
    fn read(&mut self, connection: u32, kind: u8) -> (u32, Proto) {
        let mut message = Vec::new();
        loop {
            let mut header = [0; 8];
            self.socket.read_exact(&mut header).expect("a piece");
            let (number, length) = header.split_at(4);
            let [number, length] = [number, length]
                .map(|bytes| u32::from_be_bytes(bytes.try_into().expect("four bytes")));
            assert_eq!(number, connection, "the connection of a message");
            let mut piece = vec![0; usize::try_from(length).expect("a length")];
            self.socket.read_exact(&mut piece).expect("a piece");
            let wanted = wanted(&message);
            let space = wanted.saturating_sub(message.len()).max(BUFFER);
            assert!(
                piece.len() <= space,
                "a piece of {length} bytes is not read at once"
            );
            message.extend(piece);
            let wanted = self::wanted(&message);
            assert!(
                message.len() <= wanted,
                "parts of two messages are in one piece"
            );
            if message.len() == wanted {
                break;
            }
        }
        assert_eq!(
            (message[8], message[9]),
            (kind, 0),
            "the type and flags of a message"
        );
        let stream = u32::from_be_bytes(message[4..8].try_into().expect("four bytes"));
        (stream, Proto::parse(&message[10..]))
    }
}

/// The length of a message of which this much has arrived.
fn wanted(message: &[u8]) -> usize {
    match message.get(..4).and_then(|bytes| bytes.try_into().ok()) {
        Some(length) => 10 + u32::from_be_bytes(length) as usize,
        None => 10,
    }
}
