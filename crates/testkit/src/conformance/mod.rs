//! The conformance suite that every transport must pass.
//!
//! A crate with a transport implements [`Stream`] and [`Transport`] in a separate test target with
//! `harness = false`. Its `main` is
//!
//! ```text
//! fn main() -> ExitCode {
//!     if let Some(role) = Role::of_this_process() {
//!         return role.run(&the_other_end_of_the_test());   // only with `pair_with_process`
//!     }
//!     conformance::main(conformance::trials(MyTransport))
//! }
//! ```
//!
//! Every case is one test named `TRANSPORT::case`. A transport that lacks a capability leaves the
//! method of [`Transport`] at its default. The cases that need it are then reported as ignored, so
//! no case is skipped silently.
//!
//! The requirements, in short:
//! - bytes arrive in order, or the reader gets an error;
//! - end of file comes after all data, and only if the writer shut down or closed its stream;
//! - every wait ends: a lost wakeup is a failure;
//! - buffers are bounded: backpressure reaches the writer.

mod accepting;
mod case;
mod closing;
mod exchange;
mod faults;
mod pattern;
mod role;
mod run;
mod stream;
mod transport;
mod util;
mod waiting;

pub use libtest_mimic::Trial;
pub use role::Role;
pub use run::{check, main, trials};
pub use stream::{LONGEST_CASE, LONGEST_WAIT, MOST_BUFFERED, Ready, Stream};
pub use transport::{
    Listen, Listener, MakePair, PairThroughBroker, PairWithProcess, Reset, ThroughBroker, Transport,
};
