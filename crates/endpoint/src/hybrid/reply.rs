//! The answer as a line, which a server writes.

use std::fmt::Write as _;

use super::{HybridReply, MAX_HYBRID_REPLY};

/// What a reason that is cut ends with.
const CUT: &str = "...";

impl HybridReply {
    /// The line with its newline: printable ASCII of at most [`MAX_HYBRID_REPLY`] bytes. Other characters
    /// become escapes (`\n`, `\u{fc}`), and a text that is too long is cut.
    ///
    /// The text of an established connection should be a number of at most five digits: systemd-ssh-proxy
    /// reads no more than nine bytes, and passes on the rest as data.
    pub fn to_line(&self) -> String {
        let (word, text) = match self {
            Self::Connected(text) => ("OK ", text),
            Self::Refused(text) => ("ERR ", text),
        };
        let most = MAX_HYBRID_REPLY - 1;
        let mut line = String::from(word);
        let mut whole = word.len();
        for character in text.chars() {
            let before = line.len();
            match character {
                ' '..='~' => line.push(character),
                // Writing to a string cannot fail.
                other => drop(write!(line, "{}", other.escape_default())),
            }
            if line.len() + CUT.len() <= most {
                whole = line.len();
            }
            if line.len() > most {
                line.truncate(whole.min(before));
                line.push_str(CUT);
                break;
            }
        }
        line.push('\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::HybridReplyReader;
    use super::*;

    #[test]
    fn an_accepting_answer_fits_into_the_nine_bytes_that_systemd_reads() {
        let line = HybridReply::Connected(u16::MAX.to_string()).to_line();
        assert_eq!((line.as_str(), line.len()), ("OK 65535\n", 9));
    }

    #[test]
    fn a_refusing_answer_is_one_printable_line() {
        let line = |text: &str| HybridReply::Refused(text.into()).to_line();
        assert_eq!(line("no listener"), "ERR no listener\n");
        assert_eq!(line("not\r\nOK 1\n"), "ERR not\\r\\nOK 1\\n\n");
        assert_eq!(line("\u{1b}[2Jgrün"), "ERR \\u{1b}[2Jgr\\u{fc}n\n");
        let longest = "x".repeat(MAX_HYBRID_REPLY - "ERR \n".len());
        assert_eq!(line(&longest), format!("ERR {longest}\n"));
        let cut = line(&format!("{longest}x"));
        assert!(cut.len() == MAX_HYBRID_REPLY && cut.ends_with("xx...\n"));
        // An escape is not cut in two.
        let cut = line(&"ü".repeat(MAX_HYBRID_REPLY));
        assert!(cut.len() <= MAX_HYBRID_REPLY && cut.ends_with("\\u{fc}...\n"));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_client_reads_every_line_that_a_server_writes(text in ".{0,300}", connected in any::<bool>()) {
            let reply = match connected {
                true => HybridReply::Connected(text),
                false => HybridReply::Refused(text),
            };
            let line = reply.to_line();
            let (count, read) = HybridReplyReader::default().read(line.as_bytes()).unwrap();
            prop_assert_eq!(count, line.len());
            let read = read.unwrap();
            prop_assert_eq!(matches!(read, HybridReply::Connected(_)), connected);
        }
    }
}
