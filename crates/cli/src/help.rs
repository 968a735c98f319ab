//! Help texts that clap cannot derive from an argument: notes, examples, environment variables and
//! exit statuses.
//!
//! [`os::help::TOPICS`] has one [`Topic`] for each command. `--help` and the manual pages both
//! come from it. Paragraphs contain no line breaks: [`attach`] wraps them to the terminal's width,
//! and `man` wraps its own.

mod topic;

use std::fmt::Write as _;

use clap::Command;
use clap::builder::Styles;
use clap::builder::styling::{AnsiColor, Style};

pub use topic::Topic;

use crate::os;

/// The colours of help texts.
pub const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// The widest help text, in columns. Longer lines are hard to read.
const MAX_WIDTH: usize = 100;

/// The topic of a command, if it has one.
pub fn topic(command: &str) -> Option<&'static Topic> {
    all_topics().find(|topic| topic.command == command)
}

fn all_topics() -> impl Iterator<Item = &'static Topic> {
    os::help::TOPICS.iter().copied().flatten()
}

/// Adds the topics to a command and all its subcommands, wrapped to the width of the terminal.
pub fn attach(command: Command) -> Command {
    let width = width();
    attach_below(command.term_width(width), "", width)
}

fn attach_below(command: Command, path: &str, width: usize) -> Command {
    let command = match topic(path) {
        Some(topic) => command.after_help(after_help(topic, width)),
        None => command,
    };
    command.mut_subcommands(|sub| {
        let path = join(path, sub.get_name());
        attach_below(sub, &path, width)
    })
}

/// The path of the subcommand `name` of the command `path`.
pub fn join(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        path => format!("{path} {name}"),
    }
}

/// The terminal's width as clap determines it, at most [`MAX_WIDTH`]. Without a terminal it is
/// `COLUMNS`, or else [`MAX_WIDTH`].
fn width() -> usize {
    let terminal = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    let columns = || std::env::var("COLUMNS").ok()?.parse().ok();
    let width = terminal.or_else(columns).filter(|width| *width > 0);
    width.unwrap_or(MAX_WIDTH).min(MAX_WIDTH)
}

/// The part of `--help` after the arguments.
fn after_help(topic: &Topic, width: usize) -> String {
    let mut blocks: Vec<String> = topic.notes.iter().map(|note| fill(note, width)).collect();
    if !topic.examples.is_empty() {
        blocks.push(section("Examples", &examples(topic.examples, width)));
    }
    // The variables and statuses of every command are shown once, by `hvsock --help`.
    let is_root = topic.command.is_empty();
    let environment = match is_root {
        true => os::help::ENVIRONMENT,
        false => topic.environment,
    };
    if !environment.is_empty() {
        blocks.push(section("Environment", &list(environment, width)));
    }
    let exit_status = match is_root {
        true => os::help::EXIT_STATUS,
        false => topic.exit_status,
    };
    if !exit_status.is_empty() {
        blocks.push(section("Exit status", &list(exit_status, width)));
    }
    blocks.join("\n\n")
}

fn section(heading: &str, body: &str) -> String {
    let header: &Style = STYLES.get_header();
    format!("{header}{heading}:{header:#}\n{body}")
}

/// Commands with their descriptions in a second column, or above them where that is too narrow.
fn examples(examples: &[(&str, &str)], width: usize) -> String {
    let widest = |of: fn(&(&str, &str)) -> usize| examples.iter().map(of).max().unwrap_or(0);
    let column = widest(|(command, about)| {
        if about.is_empty() {
            0
        } else {
            columns(command)
        }
    });
    let about = widest(|(_, about)| columns(about));
    let is_aligned = 2 + column + 3 + about <= width;
    let mut text = String::new();
    for (command, about) in examples {
        let _ = match (about.is_empty(), is_aligned) {
            (true, _) => writeln!(text, "  {command}"),
            (false, true) => writeln!(text, "  {command:<column$}   {about}"),
            (false, false) => writeln!(text, "  # {about}\n  {command}"),
        };
    }
    text.trim_end().to_owned()
}

/// Terms with their descriptions in a second column, or below them where that is too narrow.
fn list(terms: &[(&str, &str)], width: usize) -> String {
    let column = terms.iter().map(|(term, _)| columns(term)).max();
    let column = column.unwrap_or(0);
    let indent = 2 + column + 2;
    let mut text = String::new();
    for (term, about) in terms {
        if indent + 30 <= width {
            let about = indented(about, indent, width);
            let _ = writeln!(text, "  {term:<column$}  {}", about.trim_start());
        } else {
            let _ = writeln!(text, "  {term}\n{}", indented(about, 6, width));
        }
    }
    text.trim_end().to_owned()
}

/// `text` wrapped to `width`, with `indent` spaces before each line.
fn indented(text: &str, indent: usize, width: usize) -> String {
    let text = fill(text, width.saturating_sub(indent));
    let lines = text
        .lines()
        .map(|line| format!("{:indent$}{line}", "", indent = indent));
    lines.collect::<Vec<_>>().join("\n")
}

/// `text` wrapped to `width`. A last line of one word gets a second word from the line before.
fn fill(text: &str, width: usize) -> String {
    let mut lines: Vec<Vec<&str>> = vec![Vec::new()];
    let mut used = 0;
    for word in text.split_whitespace() {
        let columns = columns(word);
        if used > 0 && used + 1 + columns > width {
            lines.push(Vec::new());
            used = 0;
        }
        used += columns + usize::from(used > 0);
        if let Some(line) = lines.last_mut() {
            line.push(word);
        }
    }
    if let [.., before, last] = lines.as_mut_slice()
        && let ([only], true) = (&last[..], before.len() > 2)
        && before.last().map_or(0, |word| columns(word)) + 1 + columns(only) <= width
    {
        let moved = before.pop();
        last.splice(0..0, moved);
    }
    let lines = lines.iter().map(|line| line.join(" "));
    lines.collect::<Vec<_>>().join("\n")
}

fn columns(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::command::Cli;

    /// The path of every command, without those of `help`.
    fn paths(command: &Command, path: &str, all: &mut Vec<String>) {
        all.push(path.to_owned());
        for sub in command.get_subcommands() {
            paths(sub, &join(path, sub.get_name()), all);
        }
    }

    #[test]
    fn every_command_has_one_topic_with_an_example() {
        let mut all = Vec::new();
        paths(&Cli::command(), "", &mut all);
        for path in &all {
            let topic = topic(path).unwrap_or_else(|| panic!("no topic for `{path}`"));
            assert!(!topic.examples.is_empty(), "`{path}` has no example");
        }
        for topic in all_topics() {
            let command = topic.command;
            assert!(all.iter().any(|path| path == command), "{command}");
            let count = all_topics().filter(|t| t.command == command);
            assert_eq!(count.count(), 1, "{command}");
            for other in topic.see_also {
                assert!(all.iter().any(|path| path == other), "{command}: {other}");
            }
        }
    }

    #[test]
    fn an_example_shows_the_command_that_it_belongs_to() {
        for topic in all_topics().filter(|t| !t.command.is_empty()) {
            let (first, _) = topic.examples[0];
            let words = first.split(|c: char| c.is_whitespace() || "$()".contains(c));
            let mut words = words.skip_while(|word| *word != "hvsock").skip(1);
            let mut words = words.by_ref().filter(|word| !word.starts_with('-'));
            for word in topic.command.split(' ') {
                assert!(
                    words.any(|shown| shown == word),
                    "{}: {first}",
                    topic.command
                );
            }
        }
    }

    #[test]
    fn examples_are_aligned_in_80_columns_and_not_wrapped_in_60() {
        for topic in all_topics() {
            for line in examples(topic.examples, 80).lines() {
                assert!(columns(line) <= 80, "{line}");
                assert!(!line.starts_with("  #"), "{line}");
            }
            for line in examples(topic.examples, 60).lines() {
                assert!(columns(line) <= 60, "{line}");
            }
        }
    }

    #[test]
    fn a_paragraph_is_filled_and_its_last_line_has_no_single_word() {
        assert_eq!(fill("one two three", 80), "one two three");
        assert_eq!(fill("one two three four", 14), "one two\nthree four");
        assert_eq!(fill("a b c dddddd", 10), "a b\nc dddddd");
        // The word before does not fit beside it.
        assert_eq!(fill("a b c dddddd", 7), "a b c\ndddddd");
        assert_eq!(fill("", 10), "");
    }

    #[test]
    fn a_narrow_terminal_gets_descriptions_on_lines_of_their_own() {
        assert_eq!(examples(&[("x", "y")], 8), "  x   y");
        assert_eq!(examples(&[("x", "y"), ("z", "")], 5), "  # y\n  x\n  z");
        assert_eq!(list(&[("A", "b c")], 80), "  A  b c");
        assert_eq!(list(&[("A", "b c")], 20), "  A\n      b c");
    }
}
