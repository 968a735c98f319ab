//! `hvsock bench`: measures the running broker.

use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use hvsock::{ConnectOptions, HvListener};
use hvsock_address::{ServiceId, VmId};

use crate::context::Context;
use crate::os::linux::measure::{self, Effort};
use crate::output::{self, Json};
use crate::table::Columns;

/// Measure the running broker against a Unix socket
#[derive(Debug, Args)]
pub struct Bench {
    /// The number of turns
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=1000))]
    turns: u16,
    /// The duration of each measurement of each turn, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 150)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=10_000))]
    time: u16,
    #[command(flatten)]
    json: Json,
}

impl Bench {
    pub fn run(self, context: &Context) -> Result<()> {
        // Loopback needs no registration.
        let address = (VmId::LOOPBACK, ServiceId::random());
        let listener = HvListener::options()
            .endpoint(context.endpoint())
            .listen(address)?;
        let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
        let socket = folder.path().join("socket");
        let unix = UnixListener::bind(&socket)
            .with_context(|| format!("cannot listen at {}", socket.display()))?;
        measure::serve_hvsock(listener)?;
        measure::serve_unix(unix)?;
        let options = ConnectOptions::new().endpoint(context.endpoint());
        let effort = Effort {
            turns: self.turns.into(),
            time: Duration::from_millis(self.time.into()),
        };
        let figures = measure::compare(
            || options.connect(address),
            || UnixStream::connect(&socket),
            effort,
            |turn| progress(context, turn, effort.turns),
        )?;
        if self.json.json {
            return output::json(&figures);
        }
        let mut table = Columns::new(&["", "hvsock", "unix socket", "ratio (min to max)"], "")
            .right(&[1, 2, 3]);
        for row in measure::rows(&figures) {
            table.row(row);
        }
        table.print()
    }
}

/// A progress line, on a terminal only.
fn progress(context: &Context, turn: usize, turns: usize) {
    use std::io::{IsTerminal as _, stderr};

    if context.quiet || !stderr().is_terminal() {
        return;
    }
    let line = match turn {
        0 => "\rwarming up…".to_owned(),
        turn if turn == turns => "\r\x1b[K".to_owned(),
        turn => format!("\r\x1b[Kturn {turn} of {turns}…"),
    };
    output::text_to_stderr(&line);
}
