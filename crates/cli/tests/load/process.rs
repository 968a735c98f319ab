//! A process with streams, as a test controls it.

use std::any::Any;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{Totals, Way};

/// A process of the program `hvsock-load`.
pub struct Process {
    input: Box<dyn Write>,
    output: Lines<BufReader<Box<dyn Read>>>,
    /// What ends it.
    _keeps: Box<dyn Any>,
}

/// A process that is killed when this is dropped.
struct Killed(Child);

impl Process {
    /// Starts `hvsock-load ARGUMENTS` at the endpoint, and waits until it is ready.
    fn start(program: &Path, endpoint: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command
            .env_remove("HVSOCK_DIR")
            .env("HVSOCK_ENDPOINT", endpoint);
        command.args(arguments);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the load");
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (input, output) = input.zip(output).expect("piped");
        Self::of(input, output, Killed(child))
    }

    /// A process that was started elsewhere, once it is ready. `keeps` ends it.
    pub fn of(input: impl Write + 'static, output: impl Read + 'static, keeps: impl Any) -> Self {
        let output: Box<dyn Read> = Box::new(output);
        let mut process = Self {
            input: Box::new(input),
            output: BufReader::new(output).lines(),
            _keeps: Box::new(keeps),
        };
        while process.line() != "ready" {}
        process
    }

    pub fn listen(program: &Path, endpoint: &Path, address: &str, way: Way) -> Self {
        Self::start(program, endpoint, &["listen", address, way.name()])
    }

    /// Connects `count` streams, the last `half` of them half-closed.
    pub fn connect(
        program: &Path,
        endpoint: &Path,
        address: &str,
        way: Way,
        (count, half): (u64, u64),
    ) -> Self {
        let [count, half] = [count, half].map(|number| number.to_string());
        let arguments = ["connect", address, way.name(), &count, &half];
        Self::start(program, endpoint, &arguments)
    }

    fn line(&mut self) -> String {
        let line = self.output.next().expect("the load has ended");
        line.expect("a line").trim_end().to_owned()
    }

    pub fn ask(&mut self, what: &str) {
        writeln!(self.input, "{what}").expect("the load runs");
    }

    fn answer(&mut self) -> Value {
        loop {
            // A terminal may have lines of others.
            if let Ok(answer @ Value::Array(_)) = serde_json::from_str(&self.line()) {
                return answer;
            }
        }
    }

    /// The answer to `mark`.
    pub fn longest_standstills(&mut self) -> Vec<u64> {
        let answer = self.answer();
        serde_json::from_value(answer).expect("numbers")
    }

    /// The answer to `stop`.
    pub fn totals(&mut self) -> Vec<Totals> {
        let answer = self.answer();
        let totals: Vec<(u64, u64, u64, Option<String>)> =
            serde_json::from_value(answer).expect("totals");
        let totals = totals
            .into_iter()
            .map(|(id, sent, received, error)| Totals {
                id,
                sent,
                received,
                error,
            });
        totals.collect()
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
