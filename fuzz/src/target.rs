//! What a target is.

/// An input that a codec or a script has made, and its name in the corpus.
pub type Seed = (String, Vec<u8>);

/// One fuzz target.
#[derive(Debug)]
pub struct Target {
    /// Its name, also that of its folders.
    pub name: &'static str,
    /// What it feeds to what, in one line.
    pub about: &'static str,
    /// The longest input that is useful, in bytes.
    pub max_len: usize,
    /// The longest time that one input may take on a busy machine with a sanitizer, in seconds.
    pub timeout: u32,
    /// Runs one input. Returns if it is handled properly.
    pub run: fn(&[u8]),
    /// Valid inputs of every kind, made by the codecs.
    pub seeds: fn() -> Vec<Seed>,
}
