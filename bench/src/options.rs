//! What follows a bench's name: options that `--help` tells of, and one line for what is none.

use std::fmt::Write;

/// The options of one bench.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The bench's name.
    pub bench: &'static str,
    /// What it measures.
    pub about: &'static str,
    /// Each option: its word, the name of the value that follows (empty if none does), and what
    /// it does.
    pub all: &'static [(&'static str, &'static str, &'static str)],
}

/// Why a bench does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Instead {
    /// It was asked for help.
    Help,
    /// It was asked for something that it does not understand.
    Wrong(String),
}

impl Options {
    /// Hands each option of `words` and its value to `take`, which may refuse the value by
    /// saying what is wanted. Ends the process if it is asked for help (0) or wrongly (2).
    pub fn take_or_exit(
        &self,
        words: &[&str],
        take: impl FnMut(&str, &str) -> Result<(), &'static str>,
    ) {
        match self.take(words, take) {
            Ok(()) => {}
            Err(Instead::Help) => {
                print!("{}", self.help());
                std::process::exit(0);
            }
            Err(Instead::Wrong(why)) => {
                eprintln!("{why}; {}", self.usage());
                std::process::exit(2);
            }
        }
    }

    fn take(
        &self,
        words: &[&str],
        mut take: impl FnMut(&str, &str) -> Result<(), &'static str>,
    ) -> Result<(), Instead> {
        // Whoever asks for help gets it, whatever else is said.
        if words.iter().any(|word| matches!(*word, "--help" | "-h")) {
            return Err(Instead::Help);
        }
        let mut words = words.iter();
        while let Some(&word) = words.next() {
            let known = self.all.iter().find(|(known, ..)| *known == word);
            let Some((_, value_name, _)) = known else {
                return Err(Instead::Wrong(format!("{word:?} is not known")));
            };
            let value = match *value_name {
                "" => "",
                name => words
                    .next()
                    .ok_or_else(|| Instead::Wrong(format!("{word} wants {name} after it")))?,
            };
            take(word, value).map_err(|wanted| {
                Instead::Wrong(format!("{word} wants {wanted}, which {value:?} is not"))
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

/// A number that is at least one.
pub fn positive(value: &str) -> Result<usize, &'static str> {
    let wanted = "a number of at least 1";
    let number = value.parse().ok().filter(|number| *number > 0);
    number.ok_or(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: Options = Options {
        bench: "some",
        about: "Measures something.",
        all: &[
            ("--turns", "N", "so many turns (3)"),
            ("--pin", "", "stay there"),
        ],
    };

    fn take(words: &[&str]) -> Result<Vec<(String, String)>, Instead> {
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
    fn options_are_taken_in_order_with_their_values() {
        let taken = take(&["--pin", "--turns", "7"]).unwrap();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(taken, [pair("--pin", ""), pair("--turns", "7")]);
        assert!(take(&[]).unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        for (words, why) in [
            (&["--fast"][..], "\"--fast\" is not known"),
            (&["12"], "\"12\" is not known"),
            (&["--turns"], "--turns wants N after it"),
            (
                &["--turns", "0"],
                "--turns wants a number of at least 1, which \"0\" is not",
            ),
        ] {
            assert_eq!(take(words), Err(Instead::Wrong(why.to_owned())));
        }
        let usage = "usage: cargo xtask bench some [--turns N] [--pin]";
        assert_eq!(OPTIONS.usage(), usage);
    }

    #[test]
    fn help_tells_of_every_option() {
        for asked in [&["--help"][..], &["-h"], &["--turns", "--help"]] {
            assert_eq!(take(asked), Err(Instead::Help));
        }
        let help = OPTIONS.help();
        for line in [
            "  --turns N      so many turns (3)\n",
            "  --pin          stay there\n",
            "  --help, -h     print this\n",
        ] {
            assert!(help.contains(line), "{help}");
        }
        assert!(help.contains(&OPTIONS.usage()));
    }
}
