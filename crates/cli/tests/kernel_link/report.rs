//! Scenarios, and the table of their results.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use crate::host::Host;

/// One thing that must hold.
pub struct Scenario {
    /// What holds, as a sentence.
    pub name: &'static str,
    /// Shows it. Returns what was seen, for the table.
    pub run: fn(&Host) -> Result<String>,
}

/// The results so far.
pub struct Report {
    kernel: String,
    boot: Duration,
    only: Option<String>,
    lines: Vec<Line>,
}

struct Line {
    name: &'static str,
    seconds: f64,
    result: Result<String, String>,
}

impl Report {
    pub fn new(kernel: &str, boot: Duration) -> Self {
        eprintln!("Linux {kernel}, ready after {:.1} s", boot.as_secs_f64());
        Self {
            kernel: kernel.to_owned(),
            boot,
            only: std::env::var("HVSOCK_KERNEL_LINK_ONLY").ok(),
            lines: Vec::new(),
        }
    }

    /// Runs a scenario if it is selected.
    pub fn run(&mut self, scenario: &Scenario, host: &Host) {
        let name = scenario.name;
        if self.only.as_ref().is_some_and(|only| !name.contains(only)) {
            return;
        }
        let start = Instant::now();
        let result = (scenario.run)(host).map_err(|error| format!("{error:#}"));
        let seconds = start.elapsed().as_secs_f64();
        let (verdict, text) = match &result {
            Ok(text) => ("ok", text),
            Err(text) => ("FAILED", text),
        };
        eprintln!("{verdict:<6} {seconds:5.1} s  {name}: {}", text.trim_end());
        self.lines.push(Line {
            name,
            seconds,
            result,
        });
    }

    /// Writes the results as JSON if asked to, and fails if a scenario has failed.
    pub fn end(self) {
        if let Some(path) = std::env::var_os("HVSOCK_KERNEL_LINK_JSON").map(PathBuf::from) {
            std::fs::write(path, self.json()).unwrap();
        }
        let failed = self.lines.iter().filter(|line| line.result.is_err());
        let failed: Vec<&str> = failed.map(|line| line.name).collect();
        let (all, kernel) = (self.lines.len(), &self.kernel);
        eprintln!(
            "{} of {all} scenarios hold with Linux {kernel}",
            all - failed.len()
        );
        assert!(failed.is_empty(), "with Linux {kernel}: {failed:#?}");
    }

    fn json(&self) -> String {
        let scenarios: Vec<_> = self
            .lines
            .iter()
            .map(|line| {
                let (Ok(seen) | Err(seen)) = &line.result;
                json!({
                    "scenario": line.name,
                    "ok": line.result.is_ok(),
                    "seen": seen,
                    "seconds": line.seconds,
                })
            })
            .collect();
        json!({
            "kernel": self.kernel,
            "boot_seconds": self.boot.as_secs_f64(),
            "scenarios": scenarios,
        })
        .to_string()
    }
}
