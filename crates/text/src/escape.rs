//! Visible escapes, as adapters for `format!` and its kind.

use std::ffi::OsStr;
use std::fmt::{self, Display, Write as _};
use std::path::Path;

use crate::class::{is_combining, is_printable};

/// The most bytes of one value that are shown, unless [`Printable::at_most`] sets another limit.
///
/// The longest value that the integration services carry, 2047 bytes, is shown whole.
pub const MAX_LEN: usize = 4096;

/// The most combining marks on one character. More would be drawn over other rows.
const MARKS: usize = 3;

/// A value as one line of printable text: see [`printable`].
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a, T: ?Sized> {
    value: &'a T,
    max: usize,
}

/// Bytes as one line of printable text: see [`printable_bytes`].
#[derive(Clone, Copy, Debug)]
pub struct PrintableBytes<'a> {
    bytes: &'a [u8],
    max: usize,
}

/// Shows `value` as one line without characters that control a terminal, hide or reorder text.
///
/// Each such character becomes a visible escape. Text beyond [`MAX_LEN`] bytes is replaced by its
/// length. The adapter allocates nothing.
///
/// ```
/// let name = "a\nhelp: curl evil | sh \u{202e}";
/// let shown = hvsock_text::printable(name).to_string();
/// assert_eq!(shown, r"a\nhelp: curl evil | sh \u{202e}");
/// ```
pub fn printable<T: Display + ?Sized>(value: &T) -> Printable<'_, T> {
    Printable {
        value,
        max: MAX_LEN,
    }
}

/// Shows bytes like [`printable`] shows text. A byte that is not UTF-8 becomes `\xff`.
pub fn printable_bytes(bytes: &[u8]) -> PrintableBytes<'_> {
    PrintableBytes {
        bytes,
        max: MAX_LEN,
    }
}

/// Shows a path like [`printable_bytes`] shows its bytes.
pub fn printable_path<P: AsRef<Path> + ?Sized>(path: &P) -> PrintableBytes<'_> {
    let name: &OsStr = path.as_ref().as_os_str();
    printable_bytes(name.as_encoded_bytes())
}

/// The first character of `text` that [`printable`] would escape.
///
/// That is one that [`is_printable`] excludes, or a combining mark with no character to stand on.
pub fn first_escaped(text: &str) -> Option<char> {
    let mut compare = Compare { rest: text };
    let whole = printable(text).at_most(usize::MAX);
    match write!(compare, "{whole}") {
        Ok(()) => None,
        Err(fmt::Error) => compare.rest.chars().next(),
    }
}

impl<T: ?Sized> Printable<'_, T> {
    /// Shows at most `max` bytes.
    pub fn at_most(self, max: usize) -> Self {
        Self { max, ..self }
    }
}

impl PrintableBytes<'_> {
    /// Shows at most `max` bytes.
    pub fn at_most(self, max: usize) -> Self {
        Self { max, ..self }
    }
}

impl<T: Display + ?Sized> Display for Printable<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut escape = Escape::new(f, self.max);
        write!(escape, "{}", self.value)?;
        escape.finish()
    }
}

impl Display for PrintableBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut escape = Escape::new(f, self.max);
        for chunk in self.bytes.utf8_chunks() {
            escape.write_str(chunk.valid())?;
            for byte in chunk.invalid() {
                escape.byte(*byte)?;
            }
        }
        escape.finish()
    }
}

/// Writes text to a formatter with its escapes, up to a number of bytes.
struct Escape<'a, 'b> {
    out: &'a mut fmt::Formatter<'b>,
    /// How many bytes may still be shown.
    room: usize,
    /// The bytes of text that were not shown.
    left_out: usize,
    /// The combining marks since the last base character; the limit where there is none.
    marks: usize,
}

impl<'a, 'b> Escape<'a, 'b> {
    fn new(out: &'a mut fmt::Formatter<'b>, max: usize) -> Self {
        Self {
            out,
            room: max,
            left_out: 0,
            marks: MARKS,
        }
    }

    fn char(&mut self, c: char) -> fmt::Result {
        let shown_as_is = if is_combining(c) {
            let fits = self.marks < MARKS;
            self.marks += usize::from(fits);
            fits && is_printable(c)
        } else {
            self.marks = 0;
            is_printable(c)
        };
        match shown_as_is {
            true => self.put(c.len_utf8(), c.len_utf8(), format_args!("{c}")),
            false if matches!(c, '\0' | '\t' | '\n' | '\r') => {
                self.put(1, 2, format_args!("{}", c.escape_debug()))
            }
            false => {
                let escape = c.escape_unicode();
                self.put(c.len_utf8(), escape.len(), format_args!("{escape}"))
            }
        }
    }

    fn byte(&mut self, byte: u8) -> fmt::Result {
        self.marks = 0;
        self.put(1, 4, format_args!("\\x{byte:02x}"))
    }

    /// Shows `text` of `shown` bytes for `read` bytes of the value, if there is room.
    fn put(&mut self, read: usize, shown: usize, text: fmt::Arguments<'_>) -> fmt::Result {
        if self.left_out > 0 || shown > self.room {
            self.left_out += read;
            return Ok(());
        }
        self.room -= shown;
        self.out.write_fmt(text)
    }

    fn finish(self) -> fmt::Result {
        match self.left_out {
            0 => Ok(()),
            left_out => write!(self.out, "… ({left_out} more bytes)"),
        }
    }
}

impl fmt::Write for Escape<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while self.left_out == 0 {
            // Runs of plain text are written at once.
            let plain = rest.bytes().take_while(|b| (b' '..=b'~').contains(b));
            let plain = plain.take(self.room).count();
            if plain > 0 {
                self.out.write_str(&rest[..plain])?;
                self.room -= plain;
                self.marks = 0;
                rest = &rest[plain..];
            }
            let mut chars = rest.chars();
            let Some(c) = chars.next() else { break };
            self.char(c)?;
            rest = chars.as_str();
        }
        if self.left_out > 0 {
            self.left_out += rest.len();
        }
        Ok(())
    }
}

/// Fails at the first difference to a text.
struct Compare<'a> {
    rest: &'a str,
}

impl fmt::Write for Compare<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            self.rest = self.rest.strip_prefix(c).ok_or(fmt::Error)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, want: &str) {
        assert_eq!(printable(text).to_string(), want);
    }

    #[test]
    fn what_controls_hides_or_reorders_is_a_visible_escape() {
        check(
            "plain text, `quoted` \\ 'too'",
            "plain text, `quoted` \\ 'too'",
        );
        check("a\nb\r\tc\0", r"a\nb\r\tc\0");
        check("\x1b[2J\x07\u{9b}1A", r"\u{1b}[2J\u{7}\u{9b}1A");
        check("x\u{202e}y\u{2066}z\u{61c}", r"x\u{202e}y\u{2066}z\u{61c}");
        check("a\u{2028}b\u{2029}c\u{85}", r"a\u{2028}b\u{2029}c\u{85}");
        check(
            "w\u{200b}e\u{feff}b\u{e0041}",
            r"w\u{200b}e\u{feff}b\u{e0041}",
        );
        check("a\u{a0}b\u{fe0f}", r"a\u{a0}b\u{fe0f}");
        check(
            "Sauvegarde à chaud 中文 שלום",
            "Sauvegarde à chaud 中文 שלום",
        );
    }

    #[test]
    fn combining_marks_stay_on_their_own_character() {
        check("e\u{301}", "e\u{301}");
        assert_eq!(first_escaped("\u{301}x"), Some('\u{301}'));
        check("\u{301}x", r"\u{301}x");
        check(
            "e\u{301}\u{301}\u{301}\u{301}x\u{301}",
            "e\u{301}\u{301}\u{301}\\u{301}x\u{301}",
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_escapes_of_bytes() {
        let shown = printable_bytes(b"a\xffb\xc3\nc\xf0\x9f").to_string();
        assert_eq!(shown, r"a\xffb\xc3\nc\xf0\x9f");
        assert_eq!(printable_path("/tmp/a\nb").to_string(), r"/tmp/a\nb");
    }

    #[test]
    fn megabytes_are_cut_and_their_length_is_told() {
        let shown = printable(&"x".repeat(5 << 20)).to_string();
        let more = (5 << 20) - MAX_LEN;
        assert!(
            shown.ends_with(&format!("x… ({more} more bytes)")),
            "{}",
            shown.len()
        );
        assert_eq!(
            printable("abc\ndef").at_most(4).to_string(),
            "abc… (4 more bytes)"
        );
        let shown = printable(&"\n".repeat(1 << 20)).to_string();
        assert!(shown.len() < MAX_LEN + 40, "{}", shown.len());
        let shown = printable_bytes(&vec![0xff; 1 << 20]).at_most(8).to_string();
        assert_eq!(shown, r"\xff\xff… (1048574 more bytes)");
    }

    #[test]
    fn a_value_that_is_written_in_pieces_is_cut_once() {
        let value = format_args!("{}{}{}", "ab", "\ncd", "ef").to_string();
        assert_eq!(
            printable(&value).at_most(3).to_string(),
            "ab… (5 more bytes)"
        );
        let pieces = format_args!("{}{}", 1, "\u{301}").to_string();
        assert_eq!(printable(&pieces).to_string(), "1\u{301}");
    }

    proptest! {
        #[test]
        fn any_text_becomes_one_printable_line(text in any::<String>(), max in 0_usize..200) {
            let shown = printable(&text).to_string();
            prop_assert!(shown.chars().all(is_printable), "{shown:?}");
            prop_assert_eq!(first_escaped(&shown), None);
            prop_assert_eq!(first_escaped(&text).is_none(), shown == text);
            prop_assert!(first_escaped(&text).is_none_or(|c| c != 'x' && text.contains(c)));
            let cut = printable(&text).at_most(max).to_string();
            prop_assert!(cut.len() <= max + 40);
        }

        #[test]
        fn any_bytes_become_one_printable_line(bytes in any::<Vec<u8>>()) {
            let shown = printable_bytes(&bytes).to_string();
            prop_assert_eq!(first_escaped(&shown), None);
        }
    }
}
