//! Parts shared by all benches: a broker in a separate process, figures with their spread, and output files.
//!
//! Shared machines vary several-fold from one second to the next. So every claim is a ratio between two
//! subjects that one run measures in alternating turns, given as the median over the turns with minimum and
//! maximum.

#![forbid(unsafe_code)]
#![allow(
    clippy::missing_errors_doc,
    reason = "not published; its errors are for the person who runs the bench"
)]

pub mod broker;
pub mod connect;
pub mod copy;
pub mod cpu;
pub mod figures;
pub mod machine;
pub mod neighbour;
pub mod options;
pub mod plot;
pub mod run;
pub mod stream;
pub mod vm;
pub mod worker;
