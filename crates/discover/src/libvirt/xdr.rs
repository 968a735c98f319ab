//! The encoding of libvirt's messages (XDR, RFC 4506): big-endian words of four bytes, and byte strings that
//! are padded to them.

/// Bytes that are written.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn word(&mut self, word: u32) {
        self.0.extend(word.to_be_bytes());
    }

    /// Bytes of a length that both sides know.
    pub fn fixed(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub fn string(&mut self, text: &str) {
        self.word(u32::try_from(text.len()).unwrap_or_default());
        self.fixed(text.as_bytes());
    }
}

/// Bytes that are read. `None` if they are too few.
#[derive(Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn word(&mut self) -> Option<u32> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*word))
    }

    /// Bytes of a length that both sides know.
    pub fn fixed(&mut self, count: usize) -> Option<&'a [u8]> {
        let padded = count.checked_next_multiple_of(4)?;
        let bytes = self.0.get(..padded)?;
        self.0 = &self.0[padded..];
        Some(&bytes[..count])
    }

    pub fn string(&mut self) -> Option<String> {
        let length = self.word()? as usize;
        Some(String::from_utf8_lossy(self.fixed(length)?).into_owned())
    }

    /// A string that may be absent.
    pub fn optional_string(&mut self) -> Option<Option<String>> {
        match self.word()? {
            0 => Some(None),
            _ => self.string().map(Some),
        }
    }
}
