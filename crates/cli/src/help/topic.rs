//! The help text of one command.

/// The help text of one command besides its arguments.
#[derive(Debug)]
pub struct Topic {
    /// The command's words after `hvsock`, separated by spaces. Empty for `hvsock` itself.
    pub command: &'static str,
    /// Paragraphs of the description, without line breaks.
    pub notes: &'static [&'static str],
    /// Commands to paste, each with what it does. The second part may be empty.
    pub examples: &'static [(&'static str, &'static str)],
    /// Environment variables that only this command reads or sets.
    pub environment: &'static [(&'static str, &'static str)],
    /// Exit statuses, where they differ from [`os::help::EXIT_STATUS`].
    pub exit_status: &'static [(&'static str, &'static str)],
    /// Related commands, in the form of [`command`](Self::command).
    pub see_also: &'static [&'static str],
}

impl Topic {
    /// A topic with nothing in it, for struct update syntax.
    pub const EMPTY: Self = Self {
        command: "",
        notes: &[],
        examples: &[],
        environment: &[],
        exit_status: &[],
        see_also: &[],
    };
}
