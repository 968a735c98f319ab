//! A name that completes an argument.

/// One name that completes an argument.
#[derive(Debug)]
pub struct Name {
    pub name: String,
    /// A description, which zsh and fish show beside the name.
    pub about: String,
}
