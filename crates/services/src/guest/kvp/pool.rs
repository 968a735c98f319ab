//! One pool: pairs in the order in which they came, and the file of them that Hyper-V's guests have.
//!
//! The file is records of 2,560 bytes, a key in the first 512 and a value in the rest, each ended
//! by a zero byte. Programs that were written for Hyper-V read it, and write to pool 1.

/// The bytes of a record that hold its key and the zero byte after it.
pub const KEY: usize = 512;

/// The bytes of a record that hold its value and the zero byte after it.
pub const VALUE: usize = 2048;

/// One record of a file.
pub const RECORD: usize = KEY + VALUE;

/// The most pairs of one pool.
pub const PAIRS: usize = 1024;

/// Why a pair cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// No key.
    #[error("a key is not empty")]
    Empty,
    /// A longer key than a record has room for.
    #[error("a key has at most {most} bytes, and this one {0}", most = KEY - 1)]
    KeyTooLong(usize),
    /// A longer value than a record has room for.
    #[error("a value has at most {most} bytes, and this one {0}", most = VALUE - 1)]
    ValueTooLong(usize),
    /// A zero byte would end it.
    #[error("neither a key nor a value has a zero byte in it")]
    ZeroByte,
}

/// Why a pool cannot be changed in this way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The pair itself.
    #[error(transparent)]
    Pair(#[from] PairError),
    /// One pair more than there may be.
    #[error("the pool is full: it has {PAIRS} pairs")]
    Full,
    /// What is there was not made by these rules, and a change would lose some of it.
    #[error("the pool's file has more than {PAIRS} records: some other program wrote it")]
    Overlong,
}

/// Checks a key by itself.
pub fn check_key(key: &str) -> Result<(), PairError> {
    match key.len() {
        0 => Err(PairError::Empty),
        KEY.. => Err(PairError::KeyTooLong(key.len())),
        _ if key.contains('\0') => Err(PairError::ZeroByte),
        _ => Ok(()),
    }
}

/// Checks a value by itself.
pub fn check_value(value: &str) -> Result<(), PairError> {
    match value.len() {
        VALUE.. => Err(PairError::ValueTooLong(value.len())),
        _ if value.contains('\0') => Err(PairError::ZeroByte),
        _ => Ok(()),
    }
}

/// Pairs, each key once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    pairs: Vec<(String, String)>,
    overlong: bool,
}

impl Pool {
    /// What a file says. It may be of any program's making, so whatever is in it is taken for
    /// something: a record without a key for none, bytes that are not UTF-8 for U+FFFD, of two
    /// records with one key the first, and records beyond the limit for a pool that cannot be
    /// changed. At most [`Pool::BYTES`] are of interest.
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

    /// The most bytes of a file that [`Pool::decode`] looks at: one record more than there may be.
    pub const BYTES: usize = (PAIRS + 1) * RECORD;

    /// The file that says so.
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

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        let mut pairs = self.iter();
        pairs.find_map(|(known, value)| (known == key).then_some(value))
    }

    /// Sets one value, in its place if the key is there and else at the end.
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

    /// Removes one pair, and says whether it was there.
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

/// The text before the first zero byte, short enough to be written again: U+FFFD is longer than
/// the byte that it stands for.
fn text(field: &[u8], room: usize) -> String {
    let end = field.iter().position(|byte| *byte == 0);
    let mut text = String::from_utf8_lossy(&field[..end.unwrap_or(room - 1)]).into_owned();
    text.truncate(text.floor_char_boundary(room - 1));
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_is_where_hyper_v_has_it() {
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
    fn the_limits_are_those_of_the_records() {
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
    fn a_full_pool_takes_new_values_and_no_new_keys() {
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
    fn half_a_record_at_the_end_and_the_second_of_two_are_nothing() {
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
        fn it_does_what_a_plain_list_does(ops in proptest::collection::vec(op(), 0..60)) {
            let mut pool = Pool::default();
            let mut plain: Vec<(String, String)> = Vec::new();
            for op in ops {
                match op {
                    Op::Set(key, value) => {
                        pool.set(&key, &value).unwrap();
                        match plain.iter().position(|(known, _)| *known == key) {
                            Some(at) => plain[at].1 = value,
                            None => plain.push((key, value)),
                        }
                    }
                    Op::Unset(key) => {
                        let at = plain.iter().position(|(known, _)| *known == key);
                        prop_assert_eq!(pool.unset(&key).unwrap(), at.is_some());
                        at.map(|at| plain.remove(at));
                    }
                }
                let pairs: Vec<_> = pool.iter().collect();
                let plain: Vec<_> = plain.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                prop_assert_eq!(&pairs, &plain);
                prop_assert_eq!(&Pool::decode(&pool.encode()), &pool);
            }
        }

        #[test]
        fn any_bytes_are_a_pool_that_can_be_written_again(
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
