//! Standard input and output for bytes, and waiting for the thread that reads the input.
//!
//! A console takes text and no bytes: the standard library reads and writes it as UTF-8. Anything
//! else, a pipe or a file, has bytes as they are.

use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::Result;
use hvsock::HvStream;

/// Standard input, whose reads of much go by no buffer of the standard library.
pub fn input() -> io::Result<impl Read> {
    Ok(io::stdin().lock())
}

/// Standard output. Where it is a pipe or a file, dropping it ends it.
pub fn output() -> io::Result<Box<dyn Write>> {
    if io::stdout().is_terminal() {
        return Ok(Box::new(Console::default()));
    }
    Ok(Box::new(hvsock_sys::stdio::take_output()?))
}

/// Ends standard output, which dropping it has done.
pub fn end_output() -> Result<()> {
    Ok(())
}

/// A console, with something in place of bytes that are no text.
#[derive(Default)]
struct Console {
    /// The beginning of a character whose end has not come yet.
    begun: Vec<u8>,
}

impl Console {
    /// The text of what is there by now.
    fn text(&mut self, bytes: &[u8]) -> String {
        self.begun.extend_from_slice(bytes);
        let rest = match str::from_utf8(&self.begun) {
            // It is in order up to where it ends too early.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.begun.len(),
        };
        let rest = self.begun.split_off(rest);
        let whole = std::mem::replace(&mut self.begun, rest);
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

/// What the sending thread drops when done.
pub struct Sending {
    _end: Sender<()>,
}

/// What tells that it has.
pub struct Sent(Receiver<()>);

/// Both.
pub fn sending() -> io::Result<(Sending, Sent)> {
    let (end, told) = channel();
    Ok((Sending { _end: end }, Sent(told)))
}

/// How often to look whether the other end still takes input.
const LOOK_UP: Duration = Duration::from_millis(200);

impl Sent {
    /// After the other end's last byte: until all input is sent, or nobody is left to send it to.
    ///
    /// Windows does not tell an end that is gone from one that only sends no more until something
    /// is sent to it. Who sits at a console would have to do that by hand, so there the other
    /// end's last byte is the end.
    pub fn wait(&self, mut stream: &HvStream) -> io::Result<()> {
        if io::stdin().is_terminal() {
            // Without it the end of this process would be a reset for the other end.
            return stream.shutdown(Shutdown::Write);
        }
        while let Err(RecvTimeoutError::Timeout) = self.0.recv_timeout(LOOK_UP) {
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
    fn a_console_gets_text_whose_characters_are_whole() {
        let mut console = Console::default();
        let text = "é€😀";
        let shown: String = text.bytes().map(|byte| console.text(&[byte])).collect();
        assert_eq!(shown, text);
        assert_eq!(console.text(b"a\xffb\xe2\x82"), "a\u{fffd}b\u{fffd}");
    }
}
