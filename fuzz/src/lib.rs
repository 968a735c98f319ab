//! The fuzz targets: functions that take any bytes, as a hostile program or file would give them.
//!
//! A target must not panic, hang, allocate without bound, or access memory that is not its own. Three programs run
//! the same functions: the test `corpus` over the committed inputs and some variations of them, with every
//! ordinary test run; LLVM's fuzzer (`main.rs`, built by `cargo xtask fuzz`) with coverage and
//! AddressSanitizer; and `hvsock-fuzz run` over files that a person names.
//!
//! The inputs are `corpus/TARGET/`, which `cargo xtask fuzz --minimize` keeps minimal, and `regressions/TARGET/`,
//! where each file has once been a fault and is named after it.

#![forbid(unsafe_code)]

mod files;
mod list;
mod mutate;
mod target;
mod targets;

pub use files::{Input, folder, inputs, write_seeds};
pub use list::{TARGETS, choose, find, run_chosen};
pub use mutate::Mutator;
pub use target::{Seed, Target};
