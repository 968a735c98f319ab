//! Command-line options of a bench, with `--help` and one-line errors.

use std::fmt::Write;

/// The options of one bench.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The bench's name.
    pub bench: &'static str,
    /// The subject of the bench, in one sentence.
    pub about: &'static str,
    /// Each option: its name, the name of its value (empty if it has none), and its help.
    pub all: &'static [(&'static str, &'static str, &'static str)],
}

/// Why the bench does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Exit {
    /// `--help` was given.
    Help,
    /// The arguments are invalid.
    Invalid(String),
}

impl Options {
    /// Parses `words` and passes each option and its value to `take`, which may reject the value with a
    /// description of what it expects. Exits the process on `--help` (status 0) or an error (status 2).
    pub fn take_or_exit(
        &self,
        words: &[&str],
        take: impl FnMut(&str, &str) -> Result<(), &'static str>,
    ) {
        match self.take(words, take) {
            Ok(()) => {}
            Err(Exit::Help) => {
                print!("{}", self.help());
                std::process::exit(0);
            }
            Err(Exit::Invalid(why)) => {
                eprintln!("{why}; {}", self.usage());
                std::process::exit(2);
            }
        }
    }

    fn take(
        &self,
        words: &[&str],
        mut take: impl FnMut(&str, &str) -> Result<(), &'static str>,
    ) -> Result<(), Exit> {
        // `--help` has precedence over invalid arguments.
        if words.iter().any(|word| matches!(*word, "--help" | "-h")) {
            return Err(Exit::Help);
        }
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            let known = self.all.iter().find(|(known, ..)| *known == word);
            let Some((_, value_name, _)) = known else {
                return Err(Exit::Invalid(format!("unknown argument {word:?}")));
            };
            let value = match *value_name {
                "" => "",
                name => words
                    .next()
                    .ok_or_else(|| Exit::Invalid(format!("{word} needs a value {name}")))?,
            };
            take(word, value).map_err(|expected| {
                Exit::Invalid(format!("{word}: expected {expected}, not {value:?}"))
            })?;
        }
        Ok(())
    }

    fn usage(&self) -> String {
        let mut line = format!("usage: cargo xtask bench {}", self.bench);
        for (word, value, _) in self.all {
            let _ = match *value {
                "" => write!(line, " [{word}]"),
                value => write!(line, " [{word} {value}]"),
            };
        }
        line
    }

    fn help(&self) -> String {
        let mut text = format!("{}\n\n{}\n\n", self.about, self.usage());
        let help = ("--help, -h", "", "print this");
        for (word, value, about) in self.all.iter().chain([&help]) {
            let _ = writeln!(text, "  {:<14} {about}", format!("{word} {value}"));
        }
        text
    }
}

/// Parses a number of at least 1.
pub fn positive(value: &str) -> Result<usize, &'static str> {
    let expected = "a number of at least 1";
    let number = value.parse().ok().filter(|number| *number > 0);
    number.ok_or(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: Options = Options {
        bench: "some",
        about: "Measures something.",
        all: &[
            ("--turns", "N", "run N turns (3)"),
            ("--pin", "", "pin the threads"),
        ],
    };

    fn take(words: &[&str]) -> Result<Vec<(String, String)>, Exit> {
        let mut taken = Vec::new();
        OPTIONS.take(words, |word, value| {
            if word == "--turns" {
                positive(value)?;
            }
            taken.push((word.to_owned(), value.to_owned()));
            Ok(())
        })?;
        Ok(taken)
    }

    #[test]
    fn options_are_parsed_in_order_with_their_values() {
        let taken = take(&["--pin", "--turns", "7"]).unwrap();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(taken, [pair("--pin", ""), pair("--turns", "7")]);
        assert!(take(&[]).unwrap().is_empty());
    }

    #[test]
    fn an_error_is_one_line() {
        for (words, why) in [
            (&["--fast"][..], "unknown argument \"--fast\""),
            (&["12"], "unknown argument \"12\""),
            (&["--turns"], "--turns needs a value N"),
            (
                &["--turns", "0"],
                "--turns: expected a number of at least 1, not \"0\"",
            ),
        ] {
            assert_eq!(take(words), Err(Exit::Invalid(why.to_owned())));
        }
        let usage = "usage: cargo xtask bench some [--turns N] [--pin]";
        assert_eq!(OPTIONS.usage(), usage);
    }

    #[test]
    fn help_lists_every_option() {
        for asked in [&["--help"][..], &["-h"], &["--turns", "--help"]] {
            assert_eq!(take(asked), Err(Exit::Help));
        }
        let help = OPTIONS.help();
        for line in [
            "  --turns N      run N turns (3)\n",
            "  --pin          pin the threads\n",
            "  --help, -h     print this\n",
        ] {
            assert!(help.contains(line), "{help}");
        }
        assert!(help.contains(&OPTIONS.usage()));
    }
}
