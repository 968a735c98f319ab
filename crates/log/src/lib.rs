//! The log of hvsock's programs.
//!
//! Guests, VMMs, containers and local users cause most log lines and write parts of them. So two rules hold
//! for every line, whichever crate logs it:
//!
//! - An event is one line. [`Fields`] escapes what is not printable in the message and in each field,
//!   and truncates long values. The line is written at once.
//! - Lines are rate limited. [`RateLimit`] has a token bucket for each combination of a log
//!   statement and the partition or user that it names, and later logs the number of lines that it left
//!   out.
//!
//! [`init`] installs both for a program. A program that embeds the broker and has a subscriber of its own
//! adds them as layers:
//!
//! ```
//! use tracing_subscriber::layer::SubscriberExt as _;
//!
//! let subscriber = tracing_subscriber::registry()
//!     .with(hvsock_log::RateLimit::new())
//!     .with(tracing_subscriber::fmt::layer().fmt_fields(hvsock_log::Fields));
//! # drop(subscriber);
//! ```

#![forbid(unsafe_code)]

mod bucket;
mod fields;
mod layer;

use std::io::{self, IsTerminal as _};

use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

pub use fields::Fields;
pub use layer::{RateLimit, Summaries};

/// Logs to standard error, with colours only on a terminal, and with the time if `with_time` is set.
///
/// The result logs what the rate limit left out when it is dropped; keep it for as long as the program
/// runs.
///
/// # Panics
///
/// If the program has a global subscriber already.
pub fn init(filter: Targets, with_time: bool) -> Summaries {
    let has_colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let layer = fmt::layer()
        .fmt_fields(Fields)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(has_colours);
    let rate_limit = RateLimit::new();
    let summaries = rate_limit.summaries();
    let registry = tracing_subscriber::registry().with(filter).with(rate_limit);
    match with_time {
        true => registry.with(layer).init(),
        false => registry.with(layer.without_time()).init(),
    }
    summaries
}
