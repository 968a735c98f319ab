//! The line that the broker answers.

use std::fmt;

use super::MAX_TEXT_LINE;

/// What a text that is cut ends with.
const CUT: &str = "...";

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextReply {
    /// It succeeded. What follows `OK` is a list of words `key=value`, or a single value.
    Ok(String),
    /// It was refused.
    Refused {
        /// The label of the refusal, or `invalid_request`: one word.
        label: String,
        /// Why, for people.
        reason: String,
    },
}

/// A line that is not an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTextReply {
    /// It begins with neither `OK` nor `ERR`.
    #[error("the answer is neither `OK` nor `ERR`")]
    Unknown,
    /// It is longer than [`MAX_TEXT_LINE`], or has no newline at its end or another one before.
    #[error("the answer is not one line of at most {MAX_TEXT_LINE} bytes")]
    NotALine,
    /// It is not UTF-8.
    #[error("the answer is not UTF-8")]
    NotUtf8,
}

impl TextReply {
    /// The label of a line that is no request.
    pub const INVALID_REQUEST: &'static str = "invalid_request";

    /// The line with its newline, of at most [`MAX_TEXT_LINE`] bytes. Control characters become escapes, and a
    /// text that is too long is cut.
    pub fn to_line(&self) -> String {
        let text = self.to_string();
        let most = MAX_TEXT_LINE - 1;
        let mut line = String::with_capacity(text.len() + 1);
        let mut whole = 0;
        for character in text.chars() {
            match character.is_control() {
                true => line.extend(character.escape_default()),
                false => line.push(character),
            }
            if line.len() + CUT.len() <= most {
                whole = line.len();
            }
            if line.len() > most {
                line.truncate(whole);
                line.push_str(CUT);
                break;
            }
        }
        line.push('\n');
        line
    }

    /// Parses a line with its newline.
    ///
    /// # Errors
    ///
    /// See [`InvalidTextReply`].
    pub fn parse(line: &[u8]) -> Result<Self, InvalidTextReply> {
        let text = line.strip_suffix(b"\n").filter(|text| {
            let has_another = text.contains(&b'\n');
            line.len() <= MAX_TEXT_LINE && !has_another
        });
        let text = text.ok_or(InvalidTextReply::NotALine)?;
        let text = std::str::from_utf8(text).map_err(|_| InvalidTextReply::NotUtf8)?;
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        match word {
            "OK" => Ok(Self::Ok(rest.to_owned())),
            "ERR" => {
                let (label, reason) = rest.split_once(' ').unwrap_or((rest, ""));
                Ok(Self::Refused {
                    label: label.to_owned(),
                    reason: reason.to_owned(),
                })
            }
            _ => Err(InvalidTextReply::Unknown),
        }
    }

    /// The value of a key in an `OK`.
    pub fn value(&self, key: &str) -> Option<&str> {
        let Self::Ok(text) = self else {
            return None;
        };
        let mut words = text.split(' ').filter_map(|word| word.split_once('='));
        words
            .find(|(found, _)| *found == key)
            .map(|(_, value)| value)
    }
}

/// The line without its newline, as it is.
impl fmt::Display for TextReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok(text) if text.is_empty() => f.write_str("OK"),
            Self::Ok(text) => write!(f, "OK {text}"),
            Self::Refused { label, reason } => write!(f, "ERR {label} {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(reason: &str) -> TextReply {
        TextReply::Refused {
            label: "denied".into(),
            reason: reason.into(),
        }
    }

    #[test]
    fn an_answer_is_one_line_whatever_the_reason_has() {
        assert_eq!(TextReply::Ok(String::new()).to_line(), "OK\n");
        assert_eq!(TextReply::Ok("1024".into()).to_line(), "OK 1024\n");
        assert_eq!(refused("no way").to_line(), "ERR denied no way\n");
        assert_eq!(
            refused("a\r\nOK\u{1b}[2J").to_line(),
            "ERR denied a\\r\\nOK\\u{1b}[2J\n"
        );
        let cut = refused(&"ü\n".repeat(MAX_TEXT_LINE)).to_line();
        assert!(
            cut.len() <= MAX_TEXT_LINE && cut.ends_with("...\n"),
            "{cut}"
        );
        let longest = "x".repeat(MAX_TEXT_LINE - "ERR denied \n".len());
        assert_eq!(refused(&longest).to_line().len(), MAX_TEXT_LINE);
        assert!(!refused(&longest).to_line().contains("..."));
    }

    #[test]
    fn keys_are_found_in_any_order_and_unknown_ones_ignored() {
        let reply = TextReply::parse(b"OK listener=3 new=x=y token=ab\n").unwrap();
        assert_eq!(reply.value("token"), Some("ab"));
        assert_eq!(reply.value("new"), Some("x=y"));
        assert_eq!(
            (reply.value("backlog"), refused("token=1").value("token")),
            (None, None)
        );
    }

    #[test]
    fn a_line_that_is_no_answer_is_refused() {
        for (line, error) in [
            (&b"OKAY\n"[..], InvalidTextReply::Unknown),
            (b"ok\n", InvalidTextReply::Unknown),
            (b"OK", InvalidTextReply::NotALine),
            (b"OK\nOK\n", InvalidTextReply::NotALine),
            (b"ERR denied \xff\n", InvalidTextReply::NotUtf8),
            (&[b'x'; MAX_TEXT_LINE + 1], InvalidTextReply::NotALine),
        ] {
            assert_eq!(TextReply::parse(line), Err(error));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_client_reads_every_line_that_a_broker_writes(text in ".{0,300}", is_ok in any::<bool>()) {
            let reply = if is_ok { TextReply::Ok(text) } else { refused(&text) };
            let line = reply.to_line();
            let read = TextReply::parse(line.as_bytes()).unwrap();
            prop_assert_eq!(read.to_line(), line);
            prop_assert_eq!(matches!(read, TextReply::Ok(_)), is_ok);
        }

        #[test]
        fn any_bytes_are_parsed_without_a_panic(line in any::<Vec<u8>>()) {
            let _ = TextReply::parse(&line);
            let _ = TextReply::parse(&[b"ERR ", &line[..], b"\n"].concat());
        }
    }
}
