//! A pool: key-value pairs in the order of insertion, and their file format, which is Hyper-V's.
//!
//! A file consists of records of 2,560 bytes: a key in the first 512 and a value in the rest, each
//! terminated by a zero byte. Programs written for Hyper-V read the files, and write to pool 1.

use crate::protocol::kvp::{KEY, PAIRS, PairError, VALUE, check_key, check_value};
use crate::text::shortened;

/// The size of a record.
pub const RECORD: usize = KEY + VALUE;

/// Why a pool cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The pair is invalid.
    #[error(transparent)]
    Pair(#[from] PairError),
    /// The pool is full.
    #[error("the pool is full: it has {PAIRS} pairs")]
    Full,
    /// The file exceeds the limit, and a change would lose some of its pairs.
    #[error("the pool's file has more than {PAIRS} records, written by another program")]
    Overlong,
}

/// Pairs with unique keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    pairs: Vec<(String, String)>,
    overlong: bool,
}

impl Pool {
    /// Decodes a file, which any program may have written, so every content has a meaning. A record
    /// without a key is ignored. Bytes that are not UTF-8 become U+FFFD. Of two records with the
    /// same key the first one counts. Too many records make the pool read-only. At most
    /// [`Pool::BYTES`] are examined.
    pub fn decode(file: &[u8]) -> Self {
        let mut pool = Self::default();
        let records = file.chunks_exact(RECORD);
        pool.overlong = records.len() > PAIRS;
        for record in records.take(PAIRS) {
            let (key, value) = record.split_at(KEY);
            let (key, value) = (text(key, KEY), text(value, VALUE));
            if !key.is_empty() && pool.get(&key).is_none() {
                pool.pairs.push((key, value));
            }
        }
        pool
    }

    /// The most bytes of a file that [`Pool::decode`] examines: one record more than the limit.
    pub const BYTES: usize = (PAIRS + 1) * RECORD;

    /// Encodes the pool as a file.
    pub fn encode(&self) -> Vec<u8> {
        let mut file = vec![0; self.pairs.len() * RECORD];
        for (record, (key, value)) in file.chunks_exact_mut(RECORD).zip(&self.pairs) {
            record[..key.len()].copy_from_slice(key.as_bytes());
            record[KEY..KEY + value.len()].copy_from_slice(value.as_bytes());
        }
        file
    }

    /// The pairs in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.pairs.iter();
        pairs.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Returns the value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        let mut pairs = self.iter();
        pairs.find_map(|(known, value)| (known == key).then_some(value))
    }

    /// Sets a value, in place if the key exists, otherwise at the end.
    ///
    /// # Errors
    ///
    /// [`ChangeError`] if the pair is invalid, the pool is full, or its file exceeds the limit.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), ChangeError> {
        check_key(key)?;
        check_value(value)?;
        self.changeable()?;
        if let Some((_, known)) = self.pairs.iter_mut().find(|(known, _)| known == key) {
            value.clone_into(known);
            return Ok(());
        }
        if self.pairs.len() == PAIRS {
            return Err(ChangeError::Full);
        }
        self.pairs.push((key.to_owned(), value.to_owned()));
        Ok(())
    }

    /// Removes a pair. Returns whether it existed.
    ///
    /// # Errors
    ///
    /// [`ChangeError::Overlong`] if the pool's file exceeds the limit.
    pub fn unset(&mut self, key: &str) -> Result<bool, ChangeError> {
        self.changeable()?;
        let before = self.pairs.len();
        self.pairs.retain(|(known, _)| known != key);
        Ok(self.pairs.len() < before)
    }

    fn changeable(&self) -> Result<(), ChangeError> {
        match self.overlong {
            true => Err(ChangeError::Overlong),
            false => Ok(()),
        }
    }
}

/// The text before the first zero byte, truncated so that it can be written again: U+FFFD is longer
/// than the byte that it replaces.
fn text(field: &[u8], field_size: usize) -> String {
    let end = field.iter().position(|byte| *byte == 0);
    let text = String::from_utf8_lossy(&field[..end.unwrap_or(field_size - 1)]).into_owned();
    shortened(text, field_size - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_have_the_layout_of_hyper_v() {
        let mut pool = Pool::default();
        pool.set("a", "one").unwrap();
        pool.set("b", "").unwrap();
        let file = pool.encode();
        assert_eq!(file.len(), 2 * 2560);
        assert_eq!(&file[..2], b"a\0");
        assert_eq!(&file[512..516], b"one\0");
        assert_eq!(&file[2560..2562], b"b\0");
    }

    #[test]
    fn pairs_are_limited_by_the_size_of_a_record() {
        let mut pool = Pool::default();
        pool.set(&"k".repeat(511), &"v".repeat(2047)).unwrap();
        let key = pool.set(&"k".repeat(512), "");
        assert_eq!(key, Err(PairError::KeyTooLong(512).into()));
        let value = pool.set("k", &"v".repeat(2048));
        assert_eq!(value, Err(PairError::ValueTooLong(2048).into()));
        assert_eq!(pool.set("", "v"), Err(PairError::Empty.into()));
        assert_eq!(pool.set("a\0b", "v"), Err(PairError::ZeroByte.into()));
        assert_eq!(pool.set("a", "v\0"), Err(PairError::ZeroByte.into()));
        assert_eq!(pool.iter().count(), 1);
    }

    #[test]
    fn a_full_pool_accepts_new_values_but_no_new_keys() {
        let mut pool = Pool::default();
        for key in 0..PAIRS {
            pool.set(&key.to_string(), "").unwrap();
        }
        assert_eq!(pool.set("one more", ""), Err(ChangeError::Full));
        pool.set("7", "new").unwrap();
        assert_eq!(Pool::decode(&pool.encode()), pool);
    }

    #[test]
    fn a_file_with_too_many_records_is_read_and_never_rewritten() {
        let mut file = vec![0; Pool::BYTES];
        for (number, record) in file.chunks_exact_mut(RECORD).enumerate() {
            let key = number.to_string();
            record[..key.len()].copy_from_slice(key.as_bytes());
        }
        let mut pool = Pool::decode(&file);
        assert_eq!(pool.iter().count(), PAIRS);
        assert_eq!(pool.set("7", "new"), Err(ChangeError::Overlong));
        assert_eq!(pool.unset("7"), Err(ChangeError::Overlong));
    }

    #[test]
    fn a_partial_record_and_a_duplicate_key_are_ignored() {
        let mut pool = Pool::default();
        pool.set("a", "first").unwrap();
        let mut file = pool.encode();
        pool.set("a", "second").unwrap();
        file.extend(pool.encode());
        file.extend([b'x'; RECORD - 1]);
        let read = Pool::decode(&file);
        assert_eq!(read.iter().collect::<Vec<_>>(), [("a", "first")]);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Set(String, String),
        Unset(String),
    }

    fn op() -> impl Strategy<Value = Op> {
        let key = || "[a-c]{1,2}|ä{1,255}";
        prop_oneof![
            (key(), "\\PC{0,40}").prop_map(|(key, value)| Op::Set(key, value)),
            key().prop_map(Op::Unset),
        ]
    }

    proptest! {
        #[test]
        fn a_pool_behaves_like_a_list(ops in proptest::collection::vec(op(), 0..60)) {
            let mut pool = Pool::default();
            let mut model: Vec<(String, String)> = Vec::new();
            for op in ops {
                match op {
                    Op::Set(key, value) => {
                        pool.set(&key, &value).unwrap();
                        match model.iter().position(|(known, _)| *known == key) {
                            Some(at) => model[at].1 = value,
                            None => model.push((key, value)),
                        }
                    }
                    Op::Unset(key) => {
                        let at = model.iter().position(|(known, _)| *known == key);
                        prop_assert_eq!(pool.unset(&key).unwrap(), at.is_some());
                        at.map(|at| model.remove(at));
                    }
                }
                let pairs: Vec<_> = pool.iter().collect();
                let model: Vec<_> = model.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                prop_assert_eq!(&pairs, &model);
                prop_assert_eq!(&Pool::decode(&pool.encode()), &pool);
            }
        }

        #[test]
        fn any_bytes_decode_to_a_pool_that_can_be_encoded(
            records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), RECORD), 0..4),
            rest in 0..RECORD,
        ) {
            let mut file = records.concat();
            file.extend(vec![b'x'; rest]);
            let pool = Pool::decode(&file);
            prop_assert!(pool.iter().count() <= records.len());
            for (key, value) in pool.iter() {
                prop_assert_eq!(check_key(key), Ok(()));
                prop_assert_eq!(check_value(value), Ok(()));
            }
            prop_assert_eq!(&Pool::decode(&pool.encode()), &pool);
        }
    }
}
