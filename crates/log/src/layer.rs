//! The rate limit as a layer, and the thread that logs what it left out.

use std::cell::Cell;
use std::fmt::{self, Debug, Write as _};
use std::hash::{BuildHasher as _, Hasher, RandomState};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::dispatcher::{self, Dispatch, WeakDispatch};
use tracing::field::{Field, Value, Visit, display};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::bucket::{Buckets, Refused};

/// The fields that name who caused a line. Each value has a bucket of its own.
const ORIGINS: [&str; 6] = ["vm", "partition", "from", "uid", "cid", "guest"];

/// The target of the records of the broker's audit. The audit has limits of its own, counts what they
/// leave out, and never leaves out what an operator does.
const AUDIT: &str = "hvsock_audit";

/// The most bytes of a message that a summary repeats.
const MAX_MESSAGE: usize = 200;

/// A rate limit for log lines.
///
/// For each log statement, and each partition or user that the line names in one of the fields `vm`,
/// `partition`, `from`, `uid`, `cid` or `guest`: a burst of 10 lines, then one in 5 seconds. For each
/// statement in total: 100 lines, then 5 a second. Lines beyond that are counted, and the count is
/// logged within about 10 seconds, with the level and the target of the lines.
///
/// The limit concerns events of all levels; spans pass.
#[derive(Debug)]
pub struct RateLimit {
    shared: Arc<Shared>,
    hasher: RandomState,
}

/// Logs what a [`RateLimit`] left out and has not logged yet, when it is dropped.
#[derive(Debug)]
pub struct Summaries(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// The subscriber that this layer is a part of.
    subscriber: OnceLock<WeakDispatch>,
    /// Notified when there is something to report.
    counted: Condvar,
}

#[derive(Debug, Default)]
struct State {
    buckets: Buckets<Identifier, u64, Sample>,
    has_thread: bool,
}

/// One of the lines that were left out.
#[derive(Debug)]
struct Sample {
    metadata: &'static Metadata<'static>,
    message: String,
    origin: Option<(Field, String)>,
}

thread_local! {
    /// Set while this thread logs a summary, which is not limited.
    static IS_SUMMARY: Cell<bool> = const { Cell::new(false) };
}

impl RateLimit {
    /// A limit with full buckets.
    pub fn new() -> Self {
        Self {
            shared: Arc::default(),
            hasher: RandomState::new(),
        }
    }

    /// Logs the last counts when it is dropped.
    pub fn summaries(&self) -> Summaries {
        Summaries(Arc::clone(&self.shared))
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Subscriber> Layer<S> for RateLimit {
    fn on_register_dispatch(&self, subscriber: &Dispatch) {
        // A layer is a part of one subscriber.
        let _ = self.shared.subscriber.set(subscriber.downgrade());
    }

    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        if IS_SUMMARY.get() || event.metadata().target() == AUDIT {
            return true;
        }
        let mut origin = OriginHash(self.hasher.build_hasher());
        event.record(&mut origin);
        let key = (event.metadata().callsite(), origin.0.finish());
        let mut state = self.shared.lock();
        let sample = || Sample::of(event);
        let is_allowed = state.buckets.allow(key, Instant::now(), sample);
        if !is_allowed {
            self.shared.start_thread(&mut state);
        }
        is_allowed
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the thread that logs the counts, or wakes it. Without a thread they are logged at the end.
    fn start_thread(self: &Arc<Self>, state: &mut State) {
        if state.has_thread {
            self.counted.notify_one();
            return;
        }
        let shared = Arc::downgrade(self);
        let thread = thread::Builder::new().name("log-summaries".into());
        let started = thread.spawn(move || report_until_gone(&shared));
        state.has_thread = started.is_ok();
    }

    /// Logs the counts that are due, or all.
    fn report(&self, now: Option<Instant>) {
        let Some(subscriber) = self.subscriber.get().and_then(WeakDispatch::upgrade) else {
            return;
        };
        let reports = self.lock().buckets.take_reports(now);
        dispatcher::with_default(&subscriber, || {
            for refused in &reports {
                log(refused);
            }
        });
    }
}

impl Drop for Summaries {
    fn drop(&mut self) {
        self.0.report(None);
    }
}

/// Logs counts when they are due, until the layer is dropped.
fn report_until_gone(shared: &Weak<Shared>) {
    /// How often the thread looks whether the layer still exists.
    const IDLE: Duration = Duration::from_secs(60);

    while let Some(shared) = shared.upgrade() {
        let now = Instant::now();
        shared.report(Some(now));
        let state = shared.lock();
        match state.buckets.next_report() {
            // Later lines change nothing about what is due first.
            Some(at) => {
                drop(state);
                thread::sleep(at.saturating_duration_since(now));
            }
            None => drop(shared.counted.wait_timeout(state, IDLE)),
        }
    }
}

/// Logs the number of lines that were left out, as an event of the statement that they came from.
fn log(refused: &Refused<Sample>) {
    let Sample {
        metadata,
        message,
        origin,
    } = &refused.sample;
    let lines = if refused.count == 1 { "line" } else { "lines" };
    let text = format!(
        "{} similar {lines} left out in {:.1} s: {message}",
        refused.count,
        refused.since.elapsed().as_secs_f64()
    );
    let fields = metadata.fields();
    let Some(message) = fields.field("message").or_else(|| fields.iter().next()) else {
        return;
    };
    let (text, origin) = (display(text), origin.as_ref());
    let origin = origin.map(|(field, value)| (field, display(value)));
    IS_SUMMARY.set(true);
    match &origin {
        Some((field, value)) => Event::dispatch(
            metadata,
            &fields.value_set(&[
                (&message, Some(&text as &dyn Value)),
                (*field, Some(value as &dyn Value)),
            ]),
        ),
        None => Event::dispatch(
            metadata,
            &fields.value_set(&[(&message, Some(&text as &dyn Value))]),
        ),
    }
    IS_SUMMARY.set(false);
}

impl Sample {
    fn of(event: &Event<'_>) -> Self {
        let mut sample = Self {
            metadata: event.metadata(),
            message: String::new(),
            origin: None,
        };
        event.record(&mut sample);
        sample
    }
}

impl Visit for Sample {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = || {
            hvsock_text::printable(&format_args!("{value:?}"))
                .at_most(MAX_MESSAGE)
                .to_string()
        };
        if field.name() == "message" {
            self.message = text();
        } else if ORIGINS.contains(&field.name()) {
            self.origin = Some((field.clone(), text()));
        }
    }
}

/// Hashes the fields that name who caused a line.
struct OriginHash<H>(H);

impl<H: Hasher> Visit for OriginHash<H> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if ORIGINS.contains(&field.name()) {
            let _ = writeln!(self, "{}={value:?}", field.name());
        }
    }
}

impl<H: Hasher> fmt::Write for OriginHash<H> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::Fields;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<String>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0
                .lock()
                .unwrap()
                .push_str(std::str::from_utf8(bytes).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that remain of what `log` logs, with the summaries at the end.
    fn logged(log: impl FnOnce()) -> Vec<String> {
        let (lines, limit) = (Lines::default(), RateLimit::new());
        let (writer, summaries) = (lines.clone(), limit.summaries());
        let format = tracing_subscriber::fmt::layer()
            .fmt_fields(Fields)
            .without_time()
            .with_ansi(false)
            .with_target(false)
            .with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(limit).with(format);
        tracing::subscriber::with_default(subscriber, || {
            log();
            drop(summaries);
        });
        let text = lines.0.lock().unwrap().clone();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_flood_is_a_few_lines_and_the_number_of_the_others() {
        let lines = logged(|| {
            for n in 0..1000 {
                tracing::warn!(vm = %"web", "bad packet {n}");
            }
        });
        assert_eq!(lines.len(), 11, "{lines:?}");
        assert_eq!(lines[9], " WARN bad packet 9 vm=web");
        assert!(lines[10].starts_with(" WARN 990 similar lines left out in "));
        assert!(lines[10].ends_with(" s: bad packet 10 vm=web"), "{lines:?}");
    }

    #[test]
    fn the_flood_of_one_partition_hides_no_line_of_another() {
        let lines = logged(|| {
            for vm in ["web", "db"] {
                for _ in 0..100 {
                    tracing::info!(%vm, "VMM connected");
                }
                tracing::info!(%vm, "VMM left");
            }
        });
        let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
        assert_eq!(count("VMM connected vm=web"), 11);
        assert_eq!(count("VMM connected vm=db"), 11);
        assert_eq!(count("90 similar lines left out"), 2);
        assert_eq!(count("VMM left"), 2);
    }

    #[test]
    fn lines_within_the_limit_have_no_summary() {
        let lines = logged(|| (0..10).for_each(|n| tracing::debug!("line {n}")));
        assert_eq!(lines.len(), 10);
    }

    #[test]
    fn a_summary_repeats_little_and_escapes_it() {
        let lines = logged(|| {
            for _ in 0..11 {
                tracing::error!(reason = 3, "{}", "x\n\u{202e}".repeat(1000));
            }
        });
        let summary = lines.last().unwrap();
        assert!(
            summary.contains(r": x\n\u{202e}x\n") && summary.len() < 300,
            "{summary}"
        );
        assert!(summary.contains("1 similar line left out"));
    }

    #[test]
    fn the_count_is_logged_while_the_program_runs() {
        let (lines, limit) = (Lines::default(), RateLimit::new());
        let shared = Arc::clone(&limit.shared);
        let writer = lines.clone();
        let format = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(limit).with(format);
        tracing::subscriber::with_default(subscriber, || {
            (0..20).for_each(|_| tracing::info!("again"));
            shared.report(Some(Instant::now() + crate::bucket::REPORT));
        });
        assert!(shared.lock().has_thread);
        assert!(
            lines
                .0
                .lock()
                .unwrap()
                .contains("10 similar lines left out")
        );
        // The thread ends: nothing keeps the subscriber.
        assert!(shared.subscriber.get().unwrap().upgrade().is_none());
    }
}
