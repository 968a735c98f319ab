//! Protocol buffers by the numbers of their fields.

/// A message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proto(Vec<u8>);

impl Proto {
    /// An empty message.
    pub fn new() -> Self {
        Self::default()
    }

    /// The message as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Adds a number.
    #[must_use]
    pub fn varint(mut self, field: u32, value: u64) -> Self {
        self.push(u64::from(field) << 3);
        self.push(value);
        self
    }

    /// Adds bytes.
    #[must_use]
    pub fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        self.push(u64::from(field) << 3 | 2);
        self.push(value.len() as u64);
        self.0.extend(value);
        self
    }

    /// Adds a text.
    #[must_use]
    pub fn text(self, field: u32, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    /// Adds a message.
    #[must_use]
    pub fn with(self, field: u32, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    /// Adds an entry of a map of texts.
    #[must_use]
    pub fn entry(self, field: u32, key: &str, value: &str) -> Self {
        self.with(field, &Self::new().text(1, key).text(2, value))
    }

    fn push(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A message from its bytes.
    pub fn parse(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// The fields: numbers, and bytes of the others.
    fn fields(&self) -> Vec<(u32, Result<u64, &[u8]>)> {
        let (mut fields, mut rest) = (Vec::new(), self.0.as_slice());
        while !rest.is_empty() {
            let tag = number(&mut rest);
            let field = u32::try_from(tag >> 3).expect("a field");
            let value = number(&mut rest);
            match tag & 7 {
                0 => fields.push((field, Ok(value))),
                2 => {
                    let (bytes, after) = rest.split_at(value as usize);
                    fields.push((field, Err(bytes)));
                    rest = after;
                }
                other => panic!("a field of the wire type {other}"),
            }
        }
        fields
    }

    /// The number of this field, or 0.
    pub fn number(&self, field: u32) -> u64 {
        let fields = self.fields();
        let found = fields.iter().rfind(|(number, _)| *number == field);
        found.map_or(0, |(_, value)| value.expect("a number"))
    }

    /// The messages of this field.
    pub fn messages(&self, field: u32) -> Vec<Self> {
        let fields = self.fields().into_iter();
        let of_field = fields.filter(|(number, _)| *number == field);
        of_field
            .map(|(_, value)| Self::parse(value.expect_err("bytes")))
            .collect()
    }

    /// The message of this field, or an empty one.
    pub fn message(&self, field: u32) -> Self {
        self.messages(field).pop().unwrap_or_default()
    }

    /// The texts of this field.
    pub fn strings(&self, field: u32) -> Vec<String> {
        let texts = self.messages(field).into_iter();
        texts
            .map(|text| String::from_utf8(text.0).expect("UTF-8"))
            .collect()
    }

    /// The text of this field, or an empty one.
    pub fn string(&self, field: u32) -> String {
        self.strings(field).pop().unwrap_or_default()
    }
}

fn number(rest: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let (byte, after) = rest.split_first().expect("a number");
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return value;
        }
    }
}
