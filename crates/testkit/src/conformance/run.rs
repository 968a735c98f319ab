//! Runs the cases, each as one test with a time limit.

use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;

use libtest_mimic::{Arguments, Failed, Trial};

use super::case::Case;
use super::stream::LONGEST_CASE;
use super::transport::Transport;
use super::{accepting, closing, exchange, faults, waiting};
use crate::os;

/// Returns all cases for a transport, as tests.
pub fn trials<T: Transport>(transport: T) -> Vec<Trial> {
    let transport = Arc::new(transport);
    cases::<T>()
        .map(|case: Case<T>| {
            let name = format!("{}::{}", transport.name(), case.name);
            let supported = (case.supported)(&transport);
            let transport = Arc::clone(&transport);
            let body = move || bounded(transport, case.body).map_err(Failed::from);
            Trial::test(name, body).with_ignored_flag(!supported)
        })
        .collect()
}

/// Runs one case by name.
///
/// # Errors
/// The message of the failed case, or "there is no case NAME".
pub fn check<T: Transport>(transport: T, name: &str) -> Result<(), String> {
    let case = cases().find(|case: &Case<T>| case.name == name);
    let case = case.ok_or_else(|| format!("there is no case {name}"))?;
    bounded(Arc::new(transport), case.body)
}

fn cases<T: Transport>() -> impl Iterator<Item = Case<T>> {
    [
        exchange::cases(),
        closing::cases(),
        waiting::cases(),
        accepting::cases(),
        faults::cases(),
    ]
    .into_iter()
    .flatten()
}

/// Runs tests by the arguments that `cargo test` or `cargo nextest` passes. For `main`.
pub fn main(trials: Vec<Trial>) -> ExitCode {
    os::raise_descriptor_limit();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Runs a case in a new thread, which is left running if the case times out.
fn bounded<T: Transport>(transport: Arc<T>, body: fn(&T)) -> Result<(), String> {
    let (ended, end) = mpsc::channel();
    let case = thread::spawn(move || {
        body(&transport);
        // The receiver is gone if the case timed out.
        let _ = ended.send(());
    });
    if end.recv_timeout(LONGEST_CASE) == Err(mpsc::RecvTimeoutError::Timeout) {
        return Err(format!("it hangs: still running after {LONGEST_CASE:?}"));
    }
    case.join().map_err(|payload| {
        let message = payload.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| payload.downcast_ref::<&str>().copied());
        message.unwrap_or("it panicked").to_owned()
    })
}
