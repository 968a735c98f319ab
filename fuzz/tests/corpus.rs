//! Each target over its committed inputs, and for a moment over random variations of them. With this every target is
//! compiled and run by every test run, without a fuzzer.
//!
//! `HVSOCK_FUZZ_SECONDS` is how long the variations of one target take (1), `HVSOCK_FUZZ_SEED` chooses them. A
//! failed test prints the seed and writes the input to the folder for temporary files.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hvsock_fuzz::{Mutator, TARGETS, Target, folder, inputs};
use libtest_mimic::{Arguments, Failed, Trial};

/// The size of all committed inputs, at most.
const MAX_CORPUS: usize = 1 << 20;
/// The size of one, at most.
const MAX_INPUT: usize = 16 << 10;

fn main() {
    let mut trials: Vec<_> = TARGETS
        .iter()
        .map(|target| {
            let name = format!("{}_handles_its_corpus_and_variations_of_it", target.name);
            Trial::test(name, move || handles(target))
        })
        .collect();
    trials.push(Trial::test(
        "the_committed_inputs_are_small_and_each_belongs_to_a_target",
        are_small,
    ));
    trials.push(Trial::test(
        "every_target_has_a_corpus_and_seeds_with_different_names",
        have_inputs,
    ));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn handles(target: &'static Target) -> Result<(), Failed> {
    let committed = inputs(target)?;
    let seeds = (target.seeds)();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let seed = variable("HVSOCK_FUZZ_SEED").unwrap_or(now.as_nanos() as u64);
    println!("HVSOCK_FUZZ_SEED={seed}");
    let watched = Watched::start(target);
    watched.run(&[]);
    for input in &committed {
        println!("{}", input.path.display());
        watched.run(&input.bytes);
    }
    let all: Vec<&[u8]> = committed
        .iter()
        .map(|input| input.bytes.as_slice())
        .chain(seeds.iter().map(|(_, bytes)| bytes.as_slice()))
        .collect();
    for bytes in &all {
        watched.run(bytes);
    }
    let (start, mut mutator) = (Instant::now(), Mutator::new(seed));
    let limit = Duration::from_secs(variable("HVSOCK_FUZZ_SECONDS").unwrap_or(1));
    let mut runs = 0_u64;
    while start.elapsed() < limit {
        let bytes = mutator.variation(&all, target.max_len);
        watched.run(&bytes);
        runs += 1;
    }
    println!("{} committed inputs, {runs} variations", committed.len());
    Ok(())
}

/// An input, and since when it runs.
type Running = (Instant, Vec<u8>);

/// Runs inputs, and ends the process if one takes too long.
struct Watched {
    target: &'static Target,
    current: Arc<Mutex<Option<Running>>>,
    /// Ends the watching thread when dropped.
    _stop: mpsc::Sender<()>,
}

impl Watched {
    fn start(target: &'static Target) -> Self {
        let current = Arc::new(Mutex::new(None::<Running>));
        let (stop, stopped) = mpsc::channel();
        let (watched, limit) = (
            Arc::clone(&current),
            Duration::from_secs(target.timeout.into()),
        );
        thread::spawn(move || {
            let ended = Err(mpsc::RecvTimeoutError::Disconnected);
            while stopped.recv_timeout(Duration::from_secs(1)) != ended {
                let current = watched.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((since, bytes)) = &*current
                    && since.elapsed() > limit
                {
                    eprintln!(
                        "this input takes more than {limit:?}: {}",
                        save(target, bytes)
                    );
                    std::process::abort();
                }
            }
        });
        Self {
            target,
            current,
            _stop: stop,
        }
    }

    fn set(&self, value: Option<Running>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = value;
    }

    fn run(&self, bytes: &[u8]) {
        self.set(Some((Instant::now(), bytes.to_vec())));
        let result = catch_unwind(AssertUnwindSafe(|| (self.target.run)(bytes)));
        self.set(None);
        if let Err(panic) = result {
            eprintln!("the input: {}", save(self.target, bytes));
            resume_unwind(panic);
        }
    }
}

/// Writes a failing input to a file, and says where.
fn save(target: &Target, bytes: &[u8]) -> String {
    let name = format!("hvsock-fuzz-{}-{}", target.name, std::process::id());
    let path = std::env::temp_dir().join(name);
    match std::fs::write(&path, bytes) {
        Ok(()) => path.display().to_string(),
        Err(error) => format!("{bytes:?} (cannot write {}: {error})", path.display()),
    }
}

fn are_small() -> Result<(), Failed> {
    let mut total = 0;
    for target in TARGETS {
        for input in inputs(target)? {
            let length = input.bytes.len();
            if length > MAX_INPUT.min(target.max_len) {
                return Err(format!("{}: {length} bytes", input.path.display()).into());
            }
            total += length;
        }
    }
    if total > MAX_CORPUS {
        return Err(format!("{total} bytes, the limit is {MAX_CORPUS}").into());
    }
    for kind in ["corpus", "regressions"] {
        for entry in std::fs::read_dir(folder(kind))? {
            let entry = entry?;
            let name = entry.file_name();
            if entry.file_type()?.is_dir() && !TARGETS.iter().any(|target| name == target.name) {
                return Err(format!("{kind}/{}: no such target", name.display()).into());
            }
        }
    }
    Ok(())
}

fn have_inputs() -> Result<(), Failed> {
    let mut names = HashSet::new();
    for target in TARGETS {
        if !names.insert(target.name) {
            return Err(format!("two targets are {}", target.name).into());
        }
        if inputs(target)?.is_empty() {
            return Err(format!("{} has no corpus", target.name).into());
        }
        let mut seeds = HashSet::new();
        for (name, bytes) in (target.seeds)() {
            let length = bytes.len();
            if !seeds.insert(name.clone()) || length > target.max_len {
                return Err(format!("{}: the seed {name} ({length} bytes)", target.name).into());
            }
        }
        if seeds.is_empty() {
            return Err(format!("{} has no seeds", target.name).into());
        }
    }
    Ok(())
}
