//! The line by which a client selects what the peer does.

use std::str::FromStr;

/// The most bytes of a line.
pub(super) const MAX_LINE: usize = 256;
/// The most bytes of data that a client may ask for.
const MAX_DATA: usize = 64 << 20;
/// The most connections that a client may ask for.
const MAX_CONNECTIONS: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// `echo`: returns all data.
    Echo,
    /// `sink`: reads to the end, then answers with count and checksum.
    Sink,
    /// `source BYTES [WRITE]`: sends the pattern, half-closes, and then reads to the end.
    Source { bytes: usize, write: usize },
    /// `end-first TOKEN`: half-closes at once, then reads to the end.
    EndFirst { token: String },
    /// `close-unread BYTES`: sends the pattern, waits for data, and closes without reading it.
    CloseUnread { bytes: usize },
    /// `send-record TOKEN BYTES`: sends the pattern, then reads to the end.
    SendRecord { token: String, bytes: usize },
    /// `hold TOKEN`: reads nothing before `release`, then as `sink`.
    Hold { token: String },
    /// `release TOKEN`.
    Release { token: String },
    /// `outcome TOKEN`: how the connection with this token ended, once it has.
    Outcome { token: String },
    /// `dial CONNECTIONS BYTES`: connects to the client's listener, which echoes.
    Dial { connections: usize, bytes: usize },
}

impl FromStr for Command {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split(' ').collect();
        let token = |word: &str| word.to_owned();
        let command = match *words.as_slice() {
            ["echo"] => Self::Echo,
            ["sink"] => Self::Sink,
            ["source", bytes] => Self::Source {
                bytes: number(bytes, MAX_DATA)?,
                write: 65536,
            },
            ["source", bytes, write] => Self::Source {
                bytes: number(bytes, MAX_DATA)?,
                write: number(write, MAX_DATA)?.max(1),
            },
            ["end-first", of] => Self::EndFirst { token: token(of) },
            ["close-unread", bytes] => Self::CloseUnread {
                bytes: number(bytes, MAX_DATA)?,
            },
            ["send-record", of, bytes] => Self::SendRecord {
                token: token(of),
                bytes: number(bytes, MAX_DATA)?,
            },
            ["hold", of] => Self::Hold { token: token(of) },
            ["release", of] => Self::Release { token: token(of) },
            ["outcome", of] => Self::Outcome { token: token(of) },
            ["dial", connections, bytes] => Self::Dial {
                connections: number(connections, MAX_CONNECTIONS)?,
                bytes: number(bytes, MAX_DATA)?,
            },
            _ => return Err(format!("there is no command `{}`", line.escape_debug())),
        };
        Ok(command)
    }
}

fn number(word: &str, largest: usize) -> Result<usize, String> {
    let number = word.parse().ok().filter(|number| *number <= largest);
    number.ok_or_else(|| format!("`{}` is no number up to {largest}", word.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_command_with_its_arguments() {
        assert_eq!("echo".parse(), Ok(Command::Echo));
        let source = Command::Source { bytes: 9, write: 1 };
        assert_eq!("source 9 1".parse(), Ok(source));
        let hold = Command::Hold { token: "t".into() };
        assert_eq!("hold t".parse(), Ok(hold));
        for bad in [
            "",
            "echo ",
            "source",
            "source x",
            "source 99999999999",
            "hold",
        ] {
            assert!(bad.parse::<Command>().is_err(), "{bad}");
        }
    }
}
