//! The summary of a run.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::output::Output;
use crate::run;

/// An input that a target does not handle.
#[derive(Clone, Debug)]
pub struct Crash {
    /// What went wrong.
    pub fault: String,
    /// The input, if the fuzzer could save it.
    pub input: Option<PathBuf>,
    /// What the fuzzer printed.
    pub log: PathBuf,
}

/// What happened to a target.
#[derive(Clone, Debug)]
pub struct Row {
    pub target: String,
    pub seconds: f64,
    pub runs: u64,
    pub coverage: u64,
    pub corpus: u64,
    pub added: u64,
    /// In MiB.
    pub memory: u64,
    pub crashes: Vec<Crash>,
}

impl Row {
    pub fn new(target: &str) -> Self {
        Self {
            target: target.to_owned(),
            seconds: 0.0,
            runs: 0,
            coverage: 0,
            corpus: 0,
            added: 0,
            memory: 0,
            crashes: Vec::new(),
        }
    }

    /// Adds a run of the fuzzer.
    pub fn add(&mut self, output: &Output) {
        self.runs += output.runs;
        self.coverage = self.coverage.max(output.coverage);
        self.corpus = self.corpus.max(output.corpus);
        self.added += output.added;
        self.memory = self.memory.max(output.memory);
    }

    fn rate(&self) -> f64 {
        self.runs as f64 / self.seconds.max(0.1)
    }

    /// One line, when the target is done.
    pub fn progress(&self) -> String {
        let crashes = match self.crashes.len() {
            0 => String::new(),
            1 => ", 1 crash".to_owned(),
            count => format!(", {count} crashes"),
        };
        let Self { target, runs, .. } = self;
        format!("{target}: {runs} runs, coverage {}{crashes}", self.coverage)
    }
}

/// A table for people.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "target       seconds        runs    runs/s  coverage  corpus    new    MiB  crashes\n",
    );
    for row in rows {
        text.push_str(&format!(
            "{:12} {:7.0} {:11} {:9.0} {:9} {:7} {:6} {:6} {:8}\n",
            row.target,
            row.seconds,
            row.runs,
            row.rate(),
            row.coverage,
            row.corpus,
            row.added,
            row.memory,
            row.crashes.len(),
        ));
    }
    text
}

/// The same for programs.
pub fn json(rows: &[Row]) -> Value {
    let crash =
        |crash: &Crash| json!({ "fault": crash.fault, "input": crash.input, "log": crash.log });
    let row = |row: &Row| {
        json!({
            "target": row.target,
            "seconds": row.seconds,
            "runs": row.runs,
            "runs_per_second": row.rate(),
            "coverage": row.coverage,
            "corpus": row.corpus,
            "new_inputs": row.added,
            "peak_mib": row.memory,
            "crashes": row.crashes.iter().map(crash).collect::<Vec<_>>(),
        })
    };
    Value::Array(rows.iter().map(row).collect())
}

/// Each crash, and how to see it again.
pub fn help(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        for crash in &row.crashes {
            text.push_str(&format!("\n{}: {}", row.target, crash.fault));
            let file = crash.input.as_ref().unwrap_or(&crash.log);
            let file = file.strip_prefix(run::root()).unwrap_or(file).display();
            text.push_str(&match crash.input {
                Some(_) => format!(
                    "\nhelp: cargo run -p hvsock-fuzz -- run {} {file}",
                    row.target
                ),
                None => format!("\nhelp: cat {file}"),
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_is_told_with_the_command_that_shows_it_again() {
        let mut row = Row::new("reg");
        let mut output = Output::default();
        output.line("#100\tDONE   cov: 12 ft: 14 corp: 3/8b lim: 4 exec/s: 9 rss: 42Mb");
        row.add(&output);
        row.add(&output);
        row.seconds = 2.0;
        row.crashes.push(Crash {
            fault: "index out of bounds".to_owned(),
            input: Some(run::root().join("target/fuzz/crashes/reg/crash-1")),
            log: PathBuf::from("log"),
        });
        assert_eq!(
            help(&[row.clone()]),
            "\nreg: index out of bounds\n\
             help: cargo run -p hvsock-fuzz -- run reg target/fuzz/crashes/reg/crash-1"
        );
        let line = table(&[row.clone()]).lines().nth(1).map(str::to_owned);
        let line = line.unwrap_or_default();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(words, ["reg", "2", "200", "100", "12", "3", "0", "42", "1"]);
        assert_eq!(
            json(&[row])[0]["crashes"][0]["fault"],
            "index out of bounds"
        );
    }
}
