//! The reference of the copy bench: raw bytes over the same kind of connection.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use hvsock::{Endpoint, HvListener, HvStream, ServiceId, VmId};

/// Name of the container.
pub(super) const CONTAINER: &str = "box";

/// Port of the sink. The integration services do not use it.
pub(super) const SINK: u32 = 18_299;

/// Size of a chunk in bytes, the same as in a copy.
const CHUNK: usize = 256 * 1024;

/// Starts to listen in the container, until the program exits.
pub(super) fn start(endpoint: &Path) -> io::Result<()> {
    let listener = HvListener::options()
        .endpoint(endpoint)
        .listen((VmId::PARENT, ServiceId::from_port(SINK)))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || receive(stream));
        }
    });
    Ok(())
}

/// Serves one connection: receives a path (length, then bytes; empty to discard) and data until end of file,
/// writes the data to the path, and sends one byte.
fn receive(mut stream: HvStream) -> io::Result<()> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut path = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut path)?;
    let mut file = match path.as_slice() {
        [] => None,
        path => {
            use std::ffi::OsStr;
            Some(File::create(PathBuf::from(OsStr::from_bytes(path)))?)
        }
    };
    let mut buffer = vec![0; CHUNK];
    loop {
        // In whole chunks, like a copy.
        let mut filled = 0;
        while filled < CHUNK {
            match stream.read(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if let Some(file) = &mut file {
            file.write_all(&buffer[..filled])?;
        }
        if filled < CHUNK {
            break;
        }
    }
    stream.write_all(b"!")
}

/// Sends `size` bytes from memory, or from the file `from`, to the sink. It discards them or writes them
/// to the file `to`.
pub(super) fn send(
    endpoint: Endpoint,
    from: Option<&Path>,
    to: Option<&Path>,
    size: u64,
) -> io::Result<()> {
    let mut stream = HvStream::options()
        .endpoint(endpoint)
        .ring_size(1 << 20)
        .connect((CONTAINER, ServiceId::from_port(SINK)))?;
    let path = to.map_or(&b""[..], |to| to.as_os_str().as_bytes());
    stream.write_all(&(path.len() as u32).to_le_bytes())?;
    stream.write_all(path)?;
    let mut file = from.map(File::open).transpose()?;
    let mut buffer = vec![0x5a; CHUNK];
    let mut left = size;
    while left > 0 {
        let now = left.min(CHUNK as u64) as usize;
        if let Some(file) = &mut file {
            file.read_exact(&mut buffer[..now])?;
        }
        stream.write_all(&buffer[..now])?;
        left -= now as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0])
}
