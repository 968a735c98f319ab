//! The limits of key-value pairs, which are those of Hyper-V's pool files.

/// The size of a record's key field, including the terminating zero byte.
pub const KEY: usize = 512;

/// The size of a record's value field, including the terminating zero byte.
pub const VALUE: usize = 2048;

/// The most pairs of one pool.
pub const PAIRS: usize = 1024;

/// Why a pair is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// The key is empty.
    #[error("a key must not be empty")]
    Empty,
    /// The key does not fit into a record.
    #[error("the key has {0} bytes, the limit is {most}", most = KEY - 1)]
    KeyTooLong(usize),
    /// The value does not fit into a record.
    #[error("the value has {0} bytes, the limit is {most}", most = VALUE - 1)]
    ValueTooLong(usize),
    /// The key or value contains a zero byte, which terminates it in the file.
    #[error("keys and values must not contain a zero byte")]
    ZeroByte,
}

/// Validates a key.
///
/// # Errors
///
/// [`PairError`] if the key is empty, too long, or contains a zero byte.
pub fn check_key(key: &str) -> Result<(), PairError> {
    match key.len() {
        0 => Err(PairError::Empty),
        KEY.. => Err(PairError::KeyTooLong(key.len())),
        _ if key.contains('\0') => Err(PairError::ZeroByte),
        _ => Ok(()),
    }
}

/// Validates a value.
///
/// # Errors
///
/// [`PairError`] if the value is too long or contains a zero byte.
pub fn check_value(value: &str) -> Result<(), PairError> {
    match value.len() {
        VALUE.. => Err(PairError::ValueTooLong(value.len())),
        _ if value.contains('\0') => Err(PairError::ZeroByte),
        _ => Ok(()),
    }
}
