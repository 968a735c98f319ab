//! The escape sequence that leaves a terminal session whose guest does not answer: `~.` at the start
//! of a line, as in ssh.

/// The state of the scanner.
#[derive(Debug, Default)]
pub(super) enum Escape {
    /// At the start of a line.
    #[default]
    LineStart,
    /// After a `~` at the start of a line, which is held back.
    Tilde,
    /// Elsewhere in a line.
    Other,
}

impl Escape {
    /// Scans typed bytes. Returns the bytes to send, and whether the session ends after them.
    pub(super) fn scan(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut send = Vec::with_capacity(typed.len() + 1);
        for byte in typed {
            match (&self, byte) {
                (Self::LineStart, b'~') => {
                    *self = Self::Tilde;
                    continue;
                }
                (Self::Tilde, b'.') => return (send, true),
                // A doubled tilde is sent as one.
                (Self::Tilde, b'~') => *self = Self::Other,
                (state, byte) => {
                    if matches!(state, Self::Tilde) {
                        send.push(b'~');
                    }
                    *self = match byte {
                        b'\r' | b'\n' => Self::LineStart,
                        _ => Self::Other,
                    };
                }
            }
            send.push(*byte);
        }
        (send, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scans the text at once and byte by byte.
    fn scanned(typed: &str) -> (String, bool) {
        let whole = Escape::default().scan(typed.as_bytes());
        let (mut escape, mut sent, mut ends) = (Escape::default(), Vec::new(), false);
        for byte in typed.bytes() {
            let (some, end) = escape.scan(&[byte]);
            sent.extend(some);
            ends = end;
            if end {
                break;
            }
        }
        assert_eq!(whole, (sent.clone(), ends), "{typed:?}");
        (String::from_utf8(sent).unwrap(), ends)
    }

    #[test]
    fn a_tilde_and_a_full_stop_at_the_start_of_a_line_end_the_session() {
        let sent = |text: &str| (text.to_owned(), false);
        assert_eq!(scanned("~."), (String::new(), true));
        assert_eq!(scanned("ls\r~.x"), ("ls\r".to_owned(), true));
        assert_eq!(scanned("a~."), sent("a~."));
        assert_eq!(scanned("~~."), sent("~."));
        assert_eq!(scanned("~/x ~."), sent("~/x ~."));
        assert_eq!(scanned("~\r~."), ("~\r".to_owned(), true));
        // An unfinished sequence is held back.
        assert_eq!(scanned("ls\r~"), sent("ls\r"));
    }
}
