//! Deserializes a parsed TOML document and keeps the position of every error.
//!
//! The errors of a [`toml::Deserializer`] are sentences. Here serde calls the constructors of
//! [`DecodeError`] instead, which get the unknown key, the known keys and the expected type as
//! values. The innermost key or value in which an error occurs adds its span.

use std::fmt;
use std::ops::Range;

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, Expected, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::spelling::nearest;

/// The maximum length in characters of a message. A key may be as long as the file.
const MAX_MESSAGE: usize = 500;
/// The maximum length in characters of an unknown key in a message.
const MAX_KEY: usize = 100;

/// Why a document does not describe a value.
#[derive(Debug)]
pub(super) struct DecodeError {
    what: String,
    position: Position,
}

#[derive(Debug, PartialEq)]
enum Position {
    /// No enclosing key or value has been left yet.
    Unknown,
    At(usize),
    /// Something is missing, so there is nothing to point at.
    Nowhere,
}

/// A value of a document.
pub(super) struct Value<'a, 'i>(pub(super) &'a Spanned<DeValue<'i>>);

/// A table of a document.
pub(super) struct Table<'a, 'i>(pub(super) &'a DeTable<'i>);

/// The key of an entry.
struct Key<'a>(&'a str);

/// The entries of a table that are not read yet.
struct Entries<'a, 'i, I> {
    rest: I,
    /// The value of the last key.
    value: Option<&'a Spanned<DeValue<'i>>>,
}

/// The elements of an array that are not read yet.
struct Elements<I>(I);

impl DecodeError {
    /// The message, safe for terminals and logs.
    pub(super) fn message(&self) -> String {
        clean(&self.what, MAX_MESSAGE)
    }

    /// The byte offset of the key or value with the error.
    pub(super) fn offset(&self) -> Option<usize> {
        match self.position {
            Position::At(at) => Some(at),
            Position::Unknown | Position::Nowhere => None,
        }
    }

    fn new(what: String, position: Position) -> Self {
        Self { what, position }
    }

    /// Adds the span of the key or value in which the error occurred, unless an inner one has.
    fn within(mut self, span: Range<usize>) -> Self {
        if self.position == Position::Unknown {
            self.position = Position::At(span.start);
        }
        self
    }
}

/// Truncates a text from a file, and escapes what is not printable.
fn clean(text: &str, most: usize) -> String {
    hvsock_text::printable(text).at_most(most).to_string()
}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self::new(what.to_string(), Position::Unknown)
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("expected {expected}, found the {found}"))
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(format!("the key `{key}` is missing"), Position::Nowhere)
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        let all: Vec<String> = known.iter().map(|key| format!("`{key}`")).collect();
        let (all, unknown) = (all.join(", "), clean(key, MAX_KEY));
        Self::custom(match nearest(&unknown, known) {
            Some(near) => {
                format!("unknown key `{unknown}`; did you mean `{near}`? (known here: {all})")
            }
            None => format!("unknown key `{unknown}`; known here: {all}"),
        })
    }
}

impl std::error::Error for DecodeError {}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message())
    }
}

impl<'de> Deserializer<'de> for Value<'_, '_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let span = self.0.span();
        let result = match self.0.get_ref() {
            DeValue::String(text) => visitor.visit_str(text),
            DeValue::Boolean(value) => visitor.visit_bool(*value),
            DeValue::Integer(number) => {
                let (digits, radix) = (number.as_str(), number.radix());
                match i64::from_str_radix(digits, radix) {
                    Ok(number) => visitor.visit_i64(number),
                    Err(_) => match u64::from_str_radix(digits, radix) {
                        Ok(number) => visitor.visit_u64(number),
                        Err(error) => Err(de::Error::custom(error)),
                    },
                }
            }
            DeValue::Float(number) => match number.as_str().parse() {
                Ok(number) => visitor.visit_f64(number),
                Err(error) => Err(de::Error::custom(error)),
            },
            DeValue::Datetime(_) => {
                let found = Unexpected::Other("date or time");
                Err(de::Error::invalid_type(found, &visitor))
            }
            DeValue::Array(array) => visitor.visit_seq(Elements(array.iter())),
            DeValue::Table(table) => Table(table).deserialize_any(visitor),
        };
        result.map_err(|error| error.within(span))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    /// Only enums of plain names occur in the files.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let span = self.0.span();
        let result = match self.0.get_ref() {
            DeValue::String(text) => visitor.visit_enum(StrDeserializer::new(text)),
            _ => return self.deserialize_any(visitor),
        };
        result.map_err(|error: DecodeError| error.within(span))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl<'de> Deserializer<'de> for Table<'_, '_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_map(Entries {
            rest: self.0.iter(),
            value: None,
        })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier
        ignored_any
    }
}

impl<'de> Deserializer<'de> for Key<'_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_str(self.0)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl<'a, 'i: 'a, 'de, I> de::MapAccess<'de> for Entries<'a, 'i, I>
where
    I: Iterator<
        Item = (
            &'a Spanned<toml::de::DeString<'i>>,
            &'a Spanned<DeValue<'i>>,
        ),
    >,
{
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        let Some((key, value)) = self.rest.next() else {
            return Ok(None);
        };
        self.value = Some(value);
        let decoded = seed.deserialize(Key(key.get_ref()));
        decoded.map(Some).map_err(|error| error.within(key.span()))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, DecodeError> {
        let Some(value) = self.value.take() else {
            return Err(de::Error::custom("a value is read before its key"));
        };
        let decoded = seed.deserialize(Value(value));
        decoded.map_err(|error| error.within(value.span()))
    }
}

impl<'a, 'i: 'a, 'de, I> de::SeqAccess<'de> for Elements<I>
where
    I: Iterator<Item = &'a Spanned<DeValue<'i>>>,
{
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        let Some(element) = self.0.next() else {
            return Ok(None);
        };
        let decoded = seed.deserialize(Value(element));
        decoded
            .map(Some)
            .map_err(|error| error.within(element.span()))
    }
}
