//! Shows text of an untrusted origin.
//!
//! Names, file names, error texts and values of a guest, a container or another user may contain
//! anything. Printed as they are, a line feed forges a row of a table or a log, an escape sequence
//! controls the terminal, and a bidirectional or invisible character makes a text look like another
//! one. Every such text passes through this crate where it enters an output:
//!
//! - [`printable`] for a value in a line, [`printable_bytes`] and [`printable_path`] for bytes that may
//!   not be UTF-8;
//! - [`json`] for serialized JSON, which stays the same value;
//! - [`first_escaped`] for a name that is checked once, when it is registered.
//!
//! The escapes are Rust's: `\n`, `\u{202e}`, and `\xff` for a byte that is not UTF-8. A backslash stays
//! as it is, so an escaped text is for reading; programs get the exact text as JSON.

#![forbid(unsafe_code)]

mod class;
mod escape;
mod json;

pub use class::is_printable;
pub use escape::{
    MAX_LEN, Printable, PrintableBytes, first_escaped, printable, printable_bytes, printable_path,
};
pub use json::json;
