//! The way out of a terminal session whose guest no longer answers: `~.` at the beginning of a
//! line, as in ssh.

/// What has been typed so far, as far as it matters.
#[derive(Debug, Default)]
pub(super) enum Escape {
    /// At the beginning of a line.
    #[default]
    Begin,
    /// After a `~` there, which has not been sent yet.
    Tilde,
    /// Within a line.
    Within,
}

impl Escape {
    /// What of the typed bytes is to be sent, and whether the session is to end after that.
    pub(super) fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut send = Vec::with_capacity(typed.len() + 1);
        for byte in typed {
            match (&self, byte) {
                (Self::Begin, b'~') => {
                    *self = Self::Tilde;
                    continue;
                }
                (Self::Tilde, b'.') => return (send, true),
                // Typed twice it is one.
                (Self::Tilde, b'~') => *self = Self::Within,
                (state, byte) => {
                    if matches!(state, Self::Tilde) {
                        send.push(b'~');
                    }
                    *self = match byte {
                        b'\r' | b'\n' => Self::Begin,
                        _ => Self::Within,
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

    /// The same in one piece and byte by byte.
    fn passed(typed: &str) -> (String, bool) {
        let whole = Escape::default().pass(typed.as_bytes());
        let (mut escape, mut sent, mut ends) = (Escape::default(), Vec::new(), false);
        for byte in typed.bytes() {
            let (some, end) = escape.pass(&[byte]);
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
    fn a_tilde_and_a_full_stop_at_the_beginning_of_a_line_end_the_session() {
        let sent = |text: &str| (text.to_owned(), false);
        assert_eq!(passed("~."), (String::new(), true));
        assert_eq!(passed("ls\r~.x"), ("ls\r".to_owned(), true));
        assert_eq!(passed("a~."), sent("a~."));
        assert_eq!(passed("~~."), sent("~."));
        assert_eq!(passed("~/x ~."), sent("~/x ~."));
        assert_eq!(passed("~\r~."), ("~\r".to_owned(), true));
        // One that is not finished is not sent yet.
        assert_eq!(passed("ls\r~"), sent("ls\r"));
    }
}
