//! Which characters are shown as they are.

/// Whether `c` is visible by itself, or a space, and does not change how its neighbours look.
///
/// These are not: controls (C0, C1 and DEL), format characters (bidirectional controls, zero-width
/// characters, tags), line and paragraph separators, spaces other than U+0020, surrogates,
/// private-use and unassigned code points, and characters that Unicode calls default-ignorable, such
/// as variation selectors and Hangul fillers. Combining marks are printable.
///
/// The general categories are those of the standard library's `escape_debug`. What is unassigned in
/// its version of Unicode is not printable.
pub fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        _ if c.is_ascii() || is_default_ignorable(c) => false,
        // Visible, but as empty as a space.
        '\u{2800}' => false,
        _ => is_combining(c) || is_unescaped(c),
    }
}

/// Whether `c` is drawn on the character before it.
pub(crate) fn is_combining(c: char) -> bool {
    // The standard library escapes a combining mark where it is the first character of a text only.
    !c.is_ascii() && !is_unescaped(c) && {
        let mut buffer = [b'x'; 5];
        let len = 1 + c.encode_utf8(&mut buffer[1..]).len();
        let text = std::str::from_utf8(&buffer[..len]).unwrap_or_default();
        text.escape_debug().nth(1) == Some(c)
    }
}

fn is_unescaped(c: char) -> bool {
    c.escape_debug().len() == 1
}

/// Unicode's property Default_Ignorable_Code_Point (DerivedCoreProperties.txt, Unicode 16), with the
/// interlinear annotation characters U+FFF9 to U+FFFB.
fn is_default_ignorable(c: char) -> bool {
    matches!(
        c,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_control_hide_or_reorder_are_not_printable() {
        let ranges = [
            0x00..=0x1f,       // C0
            0x7f..=0xa0,       // DEL, C1 and the no-break space
            0xad..=0xad,       // soft hyphen
            0x61c..=0x61c,     // Arabic letter mark
            0x115f..=0x1160,   // Hangul fillers
            0x180e..=0x180e,   // Mongolian vowel separator
            0x2000..=0x200f,   // spaces, zero-width characters, marks of direction
            0x2028..=0x202f,   // separators, embeddings and overrides, narrow no-break space
            0x205f..=0x206f,   // mathematical space, word joiner, isolates
            0x2800..=0x2800,   // blank Braille pattern
            0x3000..=0x3000,   // ideographic space
            0x3164..=0x3164,   // Hangul filler
            0xe000..=0xe010,   // private use
            0xfe00..=0xfe0f,   // variation selectors
            0xfeff..=0xfeff,   // byte order mark
            0xffa0..=0xffa0,   // halfwidth Hangul filler
            0xfff9..=0xfffb,   // interlinear annotations
            0xffff..=0xffff,   // noncharacter
            0x1d173..=0x1d17a, // musical format characters
            0xe0000..=0xe01ff, // tags, variation selectors supplement
            0xf0000..=0xf0010, // private use
            0x10ffff..=0x10ffff,
        ];
        for code in ranges.into_iter().flatten() {
            let c = char::from_u32(code).unwrap();
            assert!(!is_printable(c), "U+{code:04X}");
        }
    }

    #[test]
    fn letters_marks_digits_and_symbols_of_any_script_are_printable() {
        let text = "aZ09 ~!\"'\\`é\u{fc}\u{17f}\u{3b1}\u{416}\u{5d0}\u{627}\u{939}\u{e01}\u{4e2d}\u{ac00}→✓€…\u{1f600}\u{fffd}";
        for c in text.chars() {
            assert!(is_printable(c), "{c:?}");
            assert!(!is_combining(c), "{c:?}");
        }
        for c in ['\u{301}', '\u{20dd}', '\u{93c}', '\u{e31}'] {
            assert!(is_printable(c) && is_combining(c), "{c:?}");
        }
    }
}
