//! The suite that every store of registrations must pass, and a store in memory.
//!
//! A crate with a store implements [`Storage`] in a test target with `harness = false`, whose `main` is
//!
//! ```text
//! fn main() -> ExitCode {
//!     conformance::main(registration_store::trials("mine", || Box::new(MyStorage::new())))
//! }
//! ```
//!
//! Every case is one test named `STORE::case`. A case that needs a capability which the storage lacks
//! is reported as ignored.

mod case;
mod changes;
mod memory;
mod storage;
mod writes;

use libtest_mimic::Trial;

pub use memory::{MemoryStorage, MemoryStore};
pub use storage::{Capabilities, Storage};

/// All cases as tests. `new` makes a new, empty storage for each.
pub fn trials(name: &str, new: fn() -> Box<dyn Storage>) -> Vec<Trial> {
    let capabilities = new().capabilities();
    let cases = writes::cases().into_iter().chain(changes::cases());
    cases
        .map(|case| {
            let body = move || {
                (case.body)(&*new());
                Ok(())
            };
            Trial::test(format!("{name}::{}", case.name), body)
                .with_ignored_flag(!(case.needs)(capabilities))
        })
        .collect()
}
