//! The progress bar and the notes of a copy.

use std::path::Path;
use std::time::{Duration, Instant};

use anstyle::AnsiColor;
use hvsock_services::copy::{CopyCounters, Note, Observer};
use hvsock_text::printable_path;
use indicatif::{BinaryBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::context::Context;
use crate::failure;
use crate::output::Lines;

/// The most notes that are printed. Further notes are counted.
const MAX_NOTES: u64 = 200;

/// A progress bar on a terminal, and the notes of both sides.
pub struct Progress {
    bar: ProgressBar,
    quiet: bool,
    began: Instant,
    notes: u64,
    /// Bytes that are not in the bar yet. The bar is not updated for each chunk.
    pending: u64,
}

impl Progress {
    /// `to_output` says that the content goes to standard output. A bar would mix with it on a terminal.
    pub fn new(context: &Context, to_output: bool) -> Self {
        use std::io::IsTerminal as _;

        let mixed = to_output && std::io::stdout().is_terminal();
        let shown = !context.quiet && !mixed && std::io::stderr().is_terminal();
        let target = match shown {
            true => ProgressDrawTarget::stderr_with_hz(10),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style(
            "{spinner} {wide_msg} {binary_bytes} {binary_bytes_per_sec}",
        ));
        if shown {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self {
            bar,
            quiet: context.quiet,
            began: Instant::now(),
            notes: 0,
            pending: 0,
        }
    }

    /// Whether the bar is on a terminal.
    pub fn is_shown(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// Ends the bar of a complete copy, and prints a summary.
    pub fn done(self, counters: &CopyCounters) {
        let shown = self.is_shown();
        self.clear(|| {
            if shown {
                let mut lines = Lines::default();
                lines.push(summary(counters, self.began.elapsed()));
                lines.print_to_stderr();
            }
        });
    }

    /// Ends the bar of a copy that failed.
    pub fn abort(self) {
        self.clear(|| {});
    }

    fn clear(&self, after: impl FnOnce()) {
        self.bar.finish_and_clear();
        if self.notes > MAX_NOTES {
            let more = HumanCount(self.notes - MAX_NOTES);
            failure::print(
                AnsiColor::Yellow.on_default().bold(),
                "note",
                &format!("{more} more notes"),
            );
        }
        after();
    }
}

impl Observer for Progress {
    fn total(&mut self, _files: u64, bytes: u64) {
        self.bar.set_length(bytes);
        self.bar.set_style(style(
            "{wide_msg} {bar:24} {percent:>3}% {binary_bytes}/{binary_total_bytes} \
             {binary_bytes_per_sec} {eta}",
        ));
    }

    fn file(&mut self, path: &Path, _size: u64) {
        if self.is_shown() {
            self.bar.set_message(printable_path(path).to_string());
        }
    }

    fn advance(&mut self, bytes: u64) {
        self.pending = self.pending.saturating_add(bytes);
        if self.pending >= 1 << 20 {
            self.bar.inc(std::mem::take(&mut self.pending));
            // The expected size is what `stat` says, and a file may be longer.
            let done = self.bar.position();
            if self.bar.length().is_some_and(|length| length < done) {
                self.bar.set_length(done);
            }
        }
    }

    fn waiting(&mut self, path: &Path, what: &str) {
        self.notes += 1;
        if self.notes > MAX_NOTES || self.quiet {
            return;
        }
        let text = match path.as_os_str().is_empty() {
            true => format!("waiting for {what}"),
            false => format!("{}: waiting for {what}", printable_path(path)),
        };
        self.bar.suspend(|| {
            failure::print(AnsiColor::Yellow.on_default().bold(), "note", &text);
        });
    }

    fn note(&mut self, note: &Note) {
        self.notes += 1;
        if self.notes > MAX_NOTES || (note.skipped && self.quiet) {
            return;
        }
        let text = format!("{}: {}", printable_path(&note.path), note.why);
        self.bar.suspend(|| match note.skipped {
            true => failure::print(AnsiColor::Yellow.on_default().bold(), "note", &text),
            false => failure::print(AnsiColor::Red.on_default().bold(), "error", &text),
        });
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn summary(counters: &CopyCounters, took: Duration) -> String {
    let seconds = took.as_secs_f64().max(1e-3);
    let rate = (counters.bytes as f64 / seconds) as u64;
    let files = match counters.files {
        1 => "1 file".to_owned(),
        many => format!("{} files", HumanCount(many)),
    };
    let resumed = match counters.resumed {
        0 => String::new(),
        resumed => format!(", {} existed already", BinaryBytes(resumed)),
    };
    let bytes = BinaryBytes(counters.bytes);
    let rate = BinaryBytes(rate);
    format!("{files}, {bytes} in {seconds:.1} s ({rate}/s){resumed}")
}
