//! Decodes the bytes of a file to text.

use super::{ImportError, MAX_LEN};

/// The detected encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Utf16,
    Utf8,
    /// Neither of the others; the most common ANSI code page.
    Windows1252,
}

/// Decodes the text. The encoding follows from the byte order mark, else from the content.
pub(super) fn decode(bytes: &[u8]) -> Result<(String, Encoding), ImportError> {
    if bytes.len() > MAX_LEN {
        let len = bytes.len();
        let what = format!("the file has {len} bytes; the limit is {MAX_LEN}");
        return Err(ImportError::new(1, what));
    }
    let text = match *bytes {
        [0xff, 0xfe, ref rest @ ..] => utf16(rest, u16::from_le_bytes)?,
        [0xfe, 0xff, ref rest @ ..] => utf16(rest, u16::from_be_bytes)?,
        // Without a byte order mark: the first line is ASCII, so one byte of each unit is zero.
        [low, 0, ..] if low != 0 => utf16(bytes, u16::from_le_bytes)?,
        [0, low, ..] if low != 0 => utf16(bytes, u16::from_be_bytes)?,
        _ => {
            let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
            return Ok(match std::str::from_utf8(bytes) {
                Ok(text) => (text.to_owned(), Encoding::Utf8),
                Err(_) => (windows_1252(bytes), Encoding::Windows1252),
            });
        }
    };
    Ok((text, Encoding::Utf16))
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, ImportError> {
    let pairs = bytes.chunks_exact(2);
    let incomplete = !pairs.remainder().is_empty();
    let mut text = String::with_capacity(bytes.len() / 2);
    let line = |text: &str| text.matches('\n').count() + 1;
    for decoded in char::decode_utf16(pairs.map(|pair| unit([pair[0], pair[1]]))) {
        match decoded {
            Ok(c) => text.push(c),
            Err(lone) => {
                let what = format!("unpaired surrogate {:#06x}", lone.unpaired_surrogate());
                return Err(ImportError::new(line(&text), what));
            }
        }
    }
    if incomplete {
        let what = "the file ends within a character";
        return Err(ImportError::new(line(&text), what));
    }
    Ok(text)
}

/// Decodes the bytes of a string value, without its terminating zero.
pub(crate) fn string_value(bytes: &[u8], version_4: bool) -> Result<String, &'static str> {
    let mut text = match version_4 {
        true => windows_1252(bytes),
        false if !bytes.len().is_multiple_of(2) => return Err("has an odd number of bytes"),
        false => {
            let pairs = bytes.chunks_exact(2);
            let units = pairs.map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
            let text: Result<String, _> = char::decode_utf16(units).collect();
            text.map_err(|_| "is not UTF-16")?
        }
    };
    if text.ends_with('\0') {
        text.pop();
    }
    Ok(text)
}

pub(super) fn windows_1252(bytes: &[u8]) -> String {
    // 0x80 to 0x9f; the five unassigned ones map to control characters (WHATWG Encoding).
    const HIGH: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž',
        '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}',
        'ž', 'Ÿ',
    ];
    let char_of = |byte: &u8| match byte {
        0x80..=0x9f => HIGH[usize::from(byte - 0x80)],
        other => char::from(*other),
    };
    bytes.iter().map(char_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_detected_by_byte_order_mark_or_content() {
        let utf16 = |mark: &str| -> (Vec<u8>, Vec<u8>) {
            let text = format!("{mark}Aé\n");
            let units = || text.encode_utf16();
            (
                units().flat_map(u16::to_le_bytes).collect(),
                units().flat_map(u16::to_be_bytes).collect(),
            )
        };
        for mark in ["\u{feff}", ""] {
            let (little, big) = utf16(mark);
            let want = ("Aé\n".to_owned(), Encoding::Utf16);
            assert_eq!(decode(&little), Ok(want.clone()));
            assert_eq!(decode(&big), Ok(want));
        }
        assert_eq!(
            decode("\u{feff}é".as_bytes()),
            Ok(("é".to_owned(), Encoding::Utf8))
        );
        assert_eq!(
            decode(b"\xe9\x80"),
            Ok(("é€".to_owned(), Encoding::Windows1252))
        );
        assert_eq!(decode(b""), Ok((String::new(), Encoding::Utf8)));
    }

    #[test]
    fn invalid_utf16_is_an_error_with_its_line() {
        let lone = [0xff, 0xfe, b'A', 0, b'\n', 0, 0x00, 0xd8];
        assert_eq!(
            decode(&lone).unwrap_err().to_string(),
            "line 2: unpaired surrogate 0xd800"
        );
        let incomplete = [0xff, 0xfe, b'A', 0, b'\n'];
        assert_eq!(decode(&incomplete).unwrap_err().line, 1);
    }

    #[test]
    fn a_string_value_loses_one_terminating_zero() {
        assert_eq!(string_value(b"a\0\0\0\0\0", false).as_deref(), Ok("a\0"));
        assert_eq!(string_value(b"a\0", false).as_deref(), Ok("a"));
        assert_eq!(string_value(b"a\x80\0", true).as_deref(), Ok("a€"));
        assert!(string_value(b"a", false).is_err());
        assert!(string_value(b"\0\xd8", false).is_err());
    }
}
