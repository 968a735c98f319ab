//! Unbuffered standard input and output, and the wait for the thread that sends the input.
//!
//! A console accepts text only: the standard library reads and writes it as UTF-8. Pipes and files
//! accept any bytes.

use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::Result;
use hvsock::HvStream;

/// Does nothing: the runtime opens no other streams in place of missing ones.
pub fn prepare() {}

/// Standard input. Large reads bypass the buffer of the standard library.
pub fn input() -> io::Result<impl Read> {
    Ok(io::stdin().lock())
}

/// Standard output. Dropping it closes a pipe or file.
pub fn output() -> io::Result<Box<dyn Write>> {
    if io::stdout().is_terminal() {
        return Ok(Box::new(Console::default()));
    }
    Ok(Box::new(hvsock_sys::stdio::take_output()?))
}

/// Writes bytes to standard output.
pub fn print(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Writes text with styles to standard output. An old console gets its colours by calls.
pub fn print_styled(text: &str) -> io::Result<()> {
    let mut stdout = anstream::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Does nothing: dropping [`output`] has closed standard output.
pub fn end_output() -> Result<()> {
    Ok(())
}

/// Closes a connection whose data is incomplete. Windows has no reset for these sockets that would tell
/// the peer; it sees the end.
pub fn reset(stream: &HvStream) {
    // It fails only if the connection is closed already.
    let _ = stream.shutdown(Shutdown::Both);
}

/// A console, with replacement characters for invalid UTF-8.
#[derive(Default)]
struct Console {
    /// The first bytes of an incomplete character.
    partial: Vec<u8>,
}

impl Console {
    /// The complete characters of all bytes so far. The rest is held back.
    fn text(&mut self, bytes: &[u8]) -> String {
        self.partial.extend_from_slice(bytes);
        let rest = match str::from_utf8(&self.partial) {
            // Valid, with an incomplete character at the end.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.partial.len(),
        };
        let rest = self.partial.split_off(rest);
        let whole = std::mem::replace(&mut self.partial, rest);
        String::from_utf8_lossy(&whole).into_owned()
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = self.text(bytes);
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The sending thread drops this when it is done.
pub struct Sending {
    _end: Sender<()>,
}

/// Notices that the [`Sending`] is dropped.
pub struct Sent(Receiver<()>);

/// A connected pair of both.
pub fn sending() -> io::Result<(Sending, Sent)> {
    let (end, dropped) = channel();
    Ok((Sending { _end: end }, Sent(dropped)))
}

/// The interval at which the peer is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

impl Sent {
    /// Waits after the peer's half-close until all input is sent or the peer reads no more.
    ///
    /// Windows reports a closed peer only on a write. At a console the user would have to type for
    /// that, so there the peer's half-close ends the command.
    pub fn wait(&self, mut stream: &HvStream) -> io::Result<()> {
        if io::stdin().is_terminal() {
            // Without a half-close the peer would see a reset when this process ends.
            return stream.shutdown(Shutdown::Write);
        }
        while let Err(RecvTimeoutError::Timeout) = self.0.recv_timeout(POLL_INTERVAL) {
            if stream.write(&[]).is_err() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_gets_complete_characters_only() {
        let mut console = Console::default();
        let text = "é€😀";
        let shown: String = text.bytes().map(|byte| console.text(&[byte])).collect();
        assert_eq!(shown, text);
        assert_eq!(console.text(b"a\xffb\xe2\x82"), "a\u{fffd}b\u{fffd}");
    }
}
