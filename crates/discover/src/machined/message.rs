//! The bytes of D-Bus messages, as much as a client of two methods needs: little-endian, method calls with
//! string arguments, and replies whose bodies are read by their signature. Source: the D-Bus Specification,
//! "Message Protocol" and "Type System".

/// The longest message that is read, and the greatest depth of containers in one.
pub const MAX_MESSAGE: usize = 8 << 20;
const MAX_DEPTH: u32 = 16;
/// The most values in a message. One takes 1 byte on the bus and 32 in memory; the longest list of machines that is
/// accepted has some 20,000.
const MAX_VALUES: usize = 1 << 18;

const METHOD_CALL: u8 = 1;
pub const METHOD_RETURN: u8 = 2;
pub const ERROR: u8 = 3;

const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// A value in a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Any integer.
    Number(i128),
    /// A string, an object path or a signature.
    Text(String),
    /// An array or structure.
    List(Vec<Value>),
    /// An entry of a dictionary.
    Entry(Box<(Value, Value)>),
    /// A boolean, double or descriptor, which nothing here needs.
    Other,
}

impl Value {
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn number(&self) -> Option<i128> {
        match self {
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }

    pub fn list(&self) -> &[Value] {
        match self {
            Self::List(list) => list,
            _ => &[],
        }
    }

    /// The value of this key in a dictionary.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.list().iter().find_map(|entry| match entry {
            Self::Entry(entry) if entry.0.text() == Some(key) => Some(&entry.1),
            _ => None,
        })
    }
}

/// A method call with string arguments.
pub fn call(
    serial: u32,
    destination: &str,
    path: &str,
    [interface, member]: [&str; 2],
    arguments: &[&str],
) -> Vec<u8> {
    let mut body = Vec::new();
    for argument in arguments {
        put_string(&mut body, argument);
    }
    let mut message = vec![b'l', METHOD_CALL, 0, 1];
    message.extend(length(body.len()).to_le_bytes());
    message.extend(serial.to_le_bytes());
    let mut fields = Vec::new();
    let signature = "s".repeat(arguments.len());
    for (code, kind, text) in [
        (PATH, "o", path),
        (INTERFACE, "s", interface),
        (MEMBER, "s", member),
        (DESTINATION, "s", destination),
        (SIGNATURE, "g", &signature),
    ] {
        // The array starts at offset 16, so its own offsets have the same alignment.
        pad(&mut fields, 8);
        fields.extend([code, 1, kind.as_bytes()[0], 0]);
        if kind == "g" {
            fields.push(u8::try_from(text.len()).unwrap_or_default());
            fields.extend(text.as_bytes());
            fields.push(0);
        } else {
            put_string(&mut fields, text);
        }
    }
    message.extend(length(fields.len()).to_le_bytes());
    message.extend(fields);
    pad(&mut message, 8);
    message.extend(body);
    message
}

fn length(count: usize) -> u32 {
    u32::try_from(count).unwrap_or_default()
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    pad(bytes, 4);
    bytes.extend(length(text.len()).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
}

/// The lengths that the first 16 bytes of a message announce: those of its header fields with their padding,
/// and its body.
pub fn lengths(head: &[u8]) -> Result<(usize, usize), &'static str> {
    let mut reader = Reader::new(head)?;
    reader.at = 4;
    let body = reader.u32()? as usize;
    reader.at = 12;
    let fields = (reader.u32()? as usize)
        .checked_next_multiple_of(8)
        .ok_or("a length overflows")?;
    match fields <= MAX_MESSAGE && body <= MAX_MESSAGE {
        true => Ok((fields, body)),
        false => Err("a message is too long"),
    }
}

/// A message of the peer.
#[derive(Debug)]
pub struct Message {
    pub kind: u8,
    /// The call that it answers.
    pub reply_to: Option<u32>,
    /// The name of an error.
    pub error: Option<String>,
    /// Its arguments.
    pub body: Vec<Value>,
}

impl Message {
    /// Reads a whole message: the first 16 bytes, header fields and body.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut reader = Reader::new(bytes)?;
        let kind = bytes[1];
        reader.at = 12;
        let fields = reader.value("a(yv)", &mut 0, 0)?;
        reader.align(8)?;
        let mut message = Self {
            kind,
            reply_to: None,
            error: None,
            body: Vec::new(),
        };
        let mut signature = "";
        for field in fields.list() {
            let [code, value] = field.list() else {
                return Err("a header field is malformed");
            };
            match u8::try_from(code.number().unwrap_or_default()).unwrap_or_default() {
                REPLY_SERIAL => {
                    message.reply_to = value.number().and_then(|n| u32::try_from(n).ok());
                }
                ERROR_NAME => message.error = value.text().map(str::to_owned),
                SIGNATURE => signature = value.text().unwrap_or_default(),
                _ => {}
            }
        }
        let mut at = 0;
        while at < signature.len() {
            message.body.push(reader.value(signature, &mut at, 0)?);
        }
        Ok(message)
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// How many values were read.
    values: usize,
}

impl<'a> Reader<'a> {
    /// A reader of a message, whose byte order must be that of our own calls.
    fn new(bytes: &'a [u8]) -> Result<Self, &'static str> {
        match bytes.first() {
            Some(b'l') if bytes.len() >= 16 => Ok(Self {
                bytes,
                at: 0,
                values: 0,
            }),
            Some(b'B') => Err("it answers in big-endian order"),
            _ => Err("a message is malformed"),
        }
    }

    fn align(&mut self, to: usize) -> Result<(), &'static str> {
        self.at = self.at.next_multiple_of(to);
        match self.at <= self.bytes.len() {
            true => Ok(()),
            false => Err("a message is too short"),
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], &'static str> {
        let end = self
            .at
            .checked_add(count)
            .filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("a message is too short")?;
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    /// An integer of this many bytes, aligned to its size.
    fn integer(&mut self, size: usize) -> Result<u64, &'static str> {
        self.align(size)?;
        let bytes = self.take(size)?;
        let mut whole = [0; 8];
        whole[..size].copy_from_slice(bytes);
        Ok(u64::from_le_bytes(whole))
    }

    fn u32(&mut self) -> Result<u32, &'static str> {
        u32::try_from(self.integer(4)?).map_err(|_| "a message is malformed")
    }

    fn string(&mut self, length: usize) -> Result<String, &'static str> {
        let bytes = self.take(length)?;
        self.take(1)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "a text is not UTF-8")
    }

    /// Reads the value of the complete type of `signature` at `at`, and moves `at` past that type.
    fn value(
        &mut self,
        signature: &str,
        at: &mut usize,
        depth: u32,
    ) -> Result<Value, &'static str> {
        if depth > MAX_DEPTH {
            return Err("a message is nested too deeply");
        }
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err("a message has too many values");
        }
        let kind = kind_at(signature, *at)?;
        *at += 1;
        Ok(match kind {
            b'y' => Value::Number(self.integer(1)?.into()),
            b'q' => Value::Number(self.integer(2)?.into()),
            b'n' => Value::Number(i128::from(self.integer(2)?.cast_signed() as i16)),
            b'u' => Value::Number(self.integer(4)?.into()),
            b'i' => Value::Number(i128::from(self.integer(4)?.cast_signed() as i32)),
            b't' => Value::Number(self.integer(8)?.into()),
            b'x' => Value::Number(self.integer(8)?.cast_signed().into()),
            b'b' | b'h' => self.integer(4).map(|_| Value::Other)?,
            b'd' => self.integer(8).map(|_| Value::Other)?,
            b's' | b'o' => {
                let length = self.u32()? as usize;
                Value::Text(self.string(length)?)
            }
            b'g' => {
                let length = self.integer(1)? as usize;
                Value::Text(self.string(length)?)
            }
            b'v' => {
                let length = self.integer(1)? as usize;
                let inner = self.string(length)?;
                self.value(&inner, &mut 0, depth + 1)?
            }
            b'(' => {
                self.align(8)?;
                let mut members = Vec::new();
                while kind_at(signature, *at)? != b')' {
                    members.push(self.value(signature, at, depth + 1)?);
                }
                *at += 1;
                Value::List(members)
            }
            b'{' => {
                self.align(8)?;
                let key = self.value(signature, at, depth + 1)?;
                let value = self.value(signature, at, depth + 1)?;
                *at += 1;
                Value::Entry(Box::new((key, value)))
            }
            b'a' => {
                let length = self.u32()? as usize;
                self.align(alignment(kind_at(signature, *at)?))?;
                let end = self.at.checked_add(length).ok_or("a length overflows")?;
                let element = *at;
                *at = skip(signature, element, depth)?;
                let mut list = Vec::new();
                while self.at < end {
                    let before = self.at;
                    list.push(self.value(signature, &mut element.clone(), depth + 1)?);
                    if self.at == before {
                        return Err("an array has elements without bytes");
                    }
                }
                Value::List(list)
            }
            _ => return Err("a type is unknown"),
        })
    }
}

fn kind_at(signature: &str, at: usize) -> Result<u8, &'static str> {
    let kind = signature.as_bytes().get(at).copied();
    kind.ok_or("a signature is malformed")
}

fn alignment(kind: u8) -> usize {
    match kind {
        b'n' | b'q' => 2,
        b'b' | b'i' | b'u' | b'h' | b's' | b'o' | b'a' => 4,
        b'x' | b't' | b'd' | b'(' | b'{' => 8,
        _ => 1,
    }
}

/// The position after the complete type at `at`.
fn skip(signature: &str, at: usize, depth: u32) -> Result<usize, &'static str> {
    if depth > MAX_DEPTH {
        return Err("a message is nested too deeply");
    }
    match kind_at(signature, at)? {
        b'a' => skip(signature, at + 1, depth + 1),
        open @ (b'(' | b'{') => {
            let close = if open == b'(' { b')' } else { b'}' };
            let mut at = at + 1;
            while kind_at(signature, at)? != close {
                at = skip(signature, at, depth + 1)?;
            }
            Ok(at + 1)
        }
        _ => Ok(at + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A reply to call 7 with this signature and body, as a bus sends it.
    fn reply(signature: &str, body: &[u8]) -> Vec<u8> {
        let mut message = vec![b'l', METHOD_RETURN, 0, 1];
        message.extend(length(body.len()).to_le_bytes());
        message.extend(9_u32.to_le_bytes());
        let mut fields = vec![REPLY_SERIAL, 1, b'u', 0, 7, 0, 0, 0];
        fields.extend([SIGNATURE, 1, b'g', 0, length(signature.len()) as u8]);
        fields.extend(signature.as_bytes());
        fields.push(0);
        message.extend(length(fields.len()).to_le_bytes());
        message.extend(fields);
        pad(&mut message, 8);
        message.extend(body);
        message
    }

    #[test]
    fn a_dictionary_of_variants_is_read_by_its_signature() {
        let mut body = vec![0; 4];
        pad(&mut body, 8);
        let start = body.len();
        put_string(&mut body, "VSockCID");
        body.extend([1, b'u', 0]);
        pad(&mut body, 4);
        body.extend(42_u32.to_le_bytes());
        pad(&mut body, 8);
        put_string(&mut body, "Class");
        body.extend([1, b's', 0]);
        put_string(&mut body, "vm");
        let size = length(body.len() - start);
        body[..4].copy_from_slice(&size.to_le_bytes());
        let message = Message::parse(&reply("a{sv}", &body)).expect("a message");
        assert_eq!(message.reply_to, Some(7));
        let number = message.body[0].get("VSockCID").and_then(Value::number);
        assert_eq!(number, Some(42));
        let class = message.body[0].get("Class").and_then(Value::text);
        assert_eq!(class, Some("vm"));
    }

    #[test]
    fn a_message_of_many_small_values_is_refused_before_it_takes_memory() {
        let bytes = |count: u32| {
            let mut body = count.to_le_bytes().to_vec();
            body.resize(4 + count as usize, 1);
            Message::parse(&reply("ay", &body))
        };
        assert_eq!(bytes(16_384).unwrap().body[0].list().len(), 16_384);
        let error = bytes(4 << 20).unwrap_err();
        assert_eq!(error, "a message has too many values");
    }

    #[test]
    fn types_that_are_nested_without_end_or_have_no_bytes_are_refused() {
        for signature in [
            "a()",
            "((((((((((((((((((((",
            "v",
            "aaaaaaaaaaaaaaaaaaaaaaaaas",
            "a{",
            "(",
        ] {
            let mut body = vec![255, 0, 0, 0];
            body.resize(300, 0);
            assert!(
                Message::parse(&reply(signature, &body)).is_err(),
                "{signature}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            signature in "[a-z(){}]{0,12}",
            body in proptest::collection::vec(any::<u8>(), 0..200),
            cut in 0_usize..300,
        ) {
            let message = reply(&signature, &body);
            let _ = Message::parse(&message[..cut.min(message.len())]);
            let _ = Message::parse(&message);
            let _ = Message::parse(&body);
        }
    }
}
