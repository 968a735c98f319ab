//! A VMM with hybrid Unix sockets, and its guest, in the test's own process. It is written from the VMMs'
//! documentation and sources, and uses nothing of the broker.

use std::collections::HashMap;
use std::fmt::Display;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

/// What a VMM of this kind answers, and what it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Answers with a port of the host, and knows ports only. It drops a first read of less than 10 bytes.
    Firecracker,
    /// The same, and accepts a line in pieces.
    CloudHypervisor,
    /// Answers with what was requested, a port or a GUID.
    OpenVmm,
}

/// A running VMM. Dropping it closes its socket and leaves the file behind, as Firecracker does.
pub struct HybridVmm {
    guest: Guest,
    listener: UnixListener,
}

/// The guest.
#[derive(Clone)]
pub struct Guest {
    path: PathBuf,
    listeners: Arc<Mutex<HashMap<String, Sender<UnixStream>>>>,
    /// The requests that have come.
    lines: Arc<Mutex<Vec<String>>>,
}

impl Guest {
    /// Connects to a service of the host.
    pub fn connect(&self, service: impl Display + Copy) -> io::Result<UnixStream> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{service}"));
        UnixStream::connect(path)
    }

    /// Accepts connections to a port, or to a GUID, from now on.
    pub fn listen(&self, service: impl Display + Copy) -> Receiver<UnixStream> {
        let (accepted, connections) = mpsc::channel();
        let mut listeners = self.listeners.lock().expect("no panic");
        listeners.insert(service.to_string(), accepted);
        connections
    }

    /// The requests that have come so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("no panic").clone()
    }
}

impl HybridVmm {
    /// Starts a VMM whose socket is at `path`.
    pub fn start(path: &Path, kind: Kind) -> Self {
        let listener = UnixListener::bind(path).expect("the VMM's socket");
        let guest = Guest {
            path: path.to_owned(),
            listeners: Arc::default(),
            lines: Arc::default(),
        };
        let (of_thread, accepting) = (guest.clone(), listener.try_clone().expect("a listener"));
        std::thread::spawn(move || {
            let mut ports = 1 << 30..;
            // Fails once the VMM is dropped.
            while let (Ok((stream, _)), Some(port)) = (accepting.accept(), ports.next()) {
                // A peer that is gone is no fault of the VMM's.
                let _ = of_thread.serve(stream, kind, port);
            }
        });
        Self { guest, listener }
    }

    /// Its guest.
    pub fn guest(&self) -> Guest {
        self.guest.clone()
    }
}

impl Guest {
    fn serve(&self, mut stream: UnixStream, kind: Kind, port: u32) -> io::Result<()> {
        let mut line = vec![0; 10];
        let first = stream.read(&mut line)?;
        line.truncate(first);
        if first < 10 && kind == Kind::Firecracker {
            return Ok(());
        }
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            if line.len() > 64 || stream.read(&mut byte)? == 0 {
                return Ok(());
            }
            line.push(byte[0]);
        }
        let line = String::from_utf8_lossy(&line).into_owned();
        let Some(service) = line.trim_end().strip_prefix("CONNECT ") else {
            return Ok(());
        };
        self.lines.lock().expect("no panic").push(line.clone());
        let listeners = self.listeners.lock().expect("no panic");
        // The guest refuses: the VMM closes without a word.
        let Some(listener) = listeners.get(service) else {
            return Ok(());
        };
        match kind {
            Kind::OpenVmm => writeln!(stream, "OK {service}")?,
            Kind::Firecracker | Kind::CloudHypervisor => writeln!(stream, "OK {port}")?,
        }
        let _ = listener.send(stream);
        Ok(())
    }
}

impl Drop for HybridVmm {
    fn drop(&mut self) {
        // Ends the thread's accept, and refuses further connects.
        let _ = hvsock_sys::stream::shutdown(&self.listener, std::net::Shutdown::Both);
    }
}
