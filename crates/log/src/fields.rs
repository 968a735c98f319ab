//! The format of an event's message and fields.

use std::fmt::{self, Debug};

use hvsock_text::printable;
use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// The most bytes that are shown of the message, and of each field. With the level and the time, a line
/// with a few fields fits into `PIPE_BUF`, and is so written in one piece even to a pipe.
const MAX_MESSAGE: usize = 2048;
const MAX_FIELD: usize = 512;

/// Formats a message and fields as one printable line: `message name=value name=value`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fields;

impl<'writer> FormatFields<'writer> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = Line {
            writer,
            is_empty: true,
            result: Ok(()),
        };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'writer> {
    writer: Writer<'writer>,
    is_empty: bool,
    result: fmt::Result,
}

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let space = if self.is_empty { "" } else { " " };
        self.is_empty = false;
        let value = format_args!("{value:?}");
        let written = match field.name() {
            "message" => {
                let message = printable(&value).at_most(MAX_MESSAGE);
                write!(self.writer, "{space}{message}")
            }
            name => {
                let value = printable(&value).at_most(MAX_FIELD);
                write!(self.writer, "{space}{name}={value}")
            }
        };
        self.result = self.result.and(written);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What a subscriber with these fields writes, one item for each call of `write`.
    fn written(log: impl FnOnce()) -> Vec<String> {
        #[derive(Clone, Default)]
        struct Writes(Arc<Mutex<Vec<String>>>);

        impl io::Write for Writes {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let text = String::from_utf8(bytes.to_vec()).unwrap();
                self.0.lock().unwrap().push(text);
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let writes = Writes::default();
        let writer = writes.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(Fields)
            .without_time()
            .with_ansi(false)
            .with_target(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        writes.0.lock().unwrap().clone()
    }

    #[test]
    fn an_event_is_one_line_in_one_write() {
        let hostile = "x\nINFO forged\u{202e}\x1b[2J";
        let writes = written(|| {
            tracing::warn!(vm = %hostile, why = hostile, count = 3, "cannot read {hostile}");
        });
        assert_eq!(
            writes,
            [concat!(
                r" WARN cannot read x\nINFO forged\u{202e}\u{1b}[2J",
                r" vm=x\nINFO forged\u{202e}\u{1b}[2J",
                r#" why="x\nINFO forged\u{202e}\u{1b}[2J" count=3"#,
                "\n"
            )]
        );
    }

    #[test]
    fn a_long_value_is_truncated() {
        let long = "x".repeat(1 << 20);
        let writes = written(|| tracing::info!(vm = %long, "{long}"));
        assert_eq!(writes.len(), 1);
        assert!(writes[0].len() < 4096, "{}", writes[0].len());
        assert!(writes[0].contains("more bytes) vm=x"), "{}", writes[0]);
    }
}
