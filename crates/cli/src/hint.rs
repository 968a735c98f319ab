//! What follows `help:` after an error or an explanation.

/// The next step that a user can take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Help {
    /// A command to paste.
    Command(String),
    /// A sentence, which may contain commands.
    Sentence(String),
}

impl Help {
    /// A command.
    pub fn command(text: impl Into<String>) -> Self {
        Self::Command(text.into())
    }

    /// A sentence.
    pub fn sentence(text: impl Into<String>) -> Self {
        Self::Sentence(text.into())
    }
}
