//! Connects a stream with a program's standard streams, or with a Unix socket.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;

/// Copies until the end of `from`. Unlike `io::copy`, it takes what a read returns, and passes it on at once.
pub fn pump(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            len => to.write_all(&buffer[..len])?,
        }
    }
}

/// Runs a shell command whose standard streams are the stream's, until its output ends. `close` half-closes
/// the stream.
pub fn to_program<S>(stream: &S, command: &str, close: impl FnOnce()) -> io::Result<()>
where
    S: Sync,
    for<'a> &'a S: Read + Write,
{
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let streams = (child.stdin.take(), child.stdout.take());
    let (Some(stdin), Some(stdout)) = streams else {
        return Err(io::ErrorKind::BrokenPipe.into());
    };
    thread::scope(|scope| {
        scope.spawn(move || pump(stream, stdin));
        let pumped = pump(stdout, stream);
        close();
        child.wait()?;
        pumped
    })
}

/// Connects the stream with a Unix socket, with half-closes both ways.
pub fn to_unix<S>(stream: &S, path: &str, close: impl FnOnce()) -> io::Result<()>
where
    S: Sync,
    for<'a> &'a S: Read + Write,
{
    let socket = UnixStream::connect(path)?;
    let to = socket.try_clone()?;
    thread::scope(|scope| {
        scope.spawn(move || {
            let _ = pump(stream, &to);
            let _ = to.shutdown(Shutdown::Write);
        });
        let pumped = pump(&socket, stream);
        close();
        pumped
    })
}
