//! What LLVM's fuzzer prints.

/// What is known of one run of the fuzzer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Inputs that were run.
    pub runs: u64,
    /// Edges that were reached.
    pub coverage: u64,
    /// Inputs that are kept.
    pub corpus: u64,
    /// Inputs that were added in this run.
    pub added: u64,
    /// The most memory, in MiB.
    pub memory: u64,
    /// What ended it, if an input did.
    pub fault: Option<String>,
    /// The line after a panic's place has its message.
    in_panic: bool,
}

impl Output {
    /// Reads a line.
    pub fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("stat::") {
            let (name, value) = rest.split_once(':').unwrap_or((rest, ""));
            let value = value.trim().parse().unwrap_or_default();
            match name {
                "number_of_executed_units" => self.runs = value,
                "new_units_added" => self.added = value,
                "peak_rss_mb" => self.memory = value,
                _ => {}
            }
            return;
        }
        if self.in_panic {
            self.in_panic = false;
            self.set_fault(line);
        } else if line.starts_with("thread ") && line.contains("panicked at") {
            self.in_panic = true;
        } else if let Some(at) = line.find("ERROR: ").filter(|_| line.starts_with("==")) {
            self.set_fault(line.get(at..).unwrap_or_default());
        }
        let Some(rest) = line.strip_prefix('#') else {
            return;
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        let Some(runs) = words.first().and_then(|runs| runs.parse().ok()) else {
            return;
        };
        self.runs = self.runs.max(runs);
        for pair in words.windows(2) {
            let number = || {
                let value = pair.last().copied().unwrap_or_default();
                let digits: String = value.chars().take_while(char::is_ascii_digit).collect();
                digits.parse().unwrap_or_default()
            };
            match pair.first().copied() {
                Some("cov:") => self.coverage = number(),
                Some("corp:") => self.corpus = number(),
                Some("rss:") => self.memory = self.memory.max(number()),
                Some("NEW" | "REDUCE") if words.get(1) == Some(&"NEW") => self.added += 1,
                _ => {}
            }
        }
    }

    /// The first fault is the cause of the others.
    fn set_fault(&mut self, text: &str) {
        self.fault.get_or_insert_with(|| text.trim().to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Output {
        let mut output = Output::default();
        text.lines().for_each(|line| output.line(line));
        output
    }

    #[test]
    fn progress_and_final_numbers_are_read() {
        let output = read(
            "INFO: Seed: 5\n#2\tINITED cov: 10 ft: 11 corp: 1/1b exec/s: 0 rss: 40Mb\n\
             #70\tNEW    cov: 12 ft: 14 corp: 3/9b lim: 4 exec/s: 0 rss: 41Mb L: 4/4 MS: 1 ChangeByte-\n\
             #99\tREDUCE cov: 12 ft: 14 corp: 3/8b lim: 4 exec/s: 0 rss: 41Mb\n\
             #100\tDONE   cov: 12 ft: 14 corp: 3/8b lim: 4 exec/s: 9 rss: 42Mb\n",
        );
        let read_so_far = (output.runs, output.coverage, output.corpus, output.added);
        assert_eq!((read_so_far, output.memory), ((100, 12, 3, 1), 42));
        let output = read(
            "stat::number_of_executed_units: 100\nstat::new_units_added:          7\n\
             stat::slowest_unit_time_sec:    0\nstat::peak_rss_mb:              43",
        );
        assert_eq!((output.runs, output.added, output.memory), (100, 7, 43));
        assert_eq!(output.fault, None);
    }

    #[test]
    fn the_first_fault_is_named() {
        let panic = "thread '<unnamed>' panicked at a.rs:1:2:\nindex out of bounds\n==7== ERROR: libFuzzer: deadly signal\n";
        assert_eq!(read(panic).fault.as_deref(), Some("index out of bounds"));
        let timeout = "ALARM: working\n==7== ERROR: libFuzzer: timeout after 10 seconds\n";
        let fault = read(timeout).fault;
        assert_eq!(
            fault.as_deref(),
            Some("ERROR: libFuzzer: timeout after 10 seconds")
        );
    }
}
