//! What all measurements share: a broker in a process of its own, figures with their spread, and
//! where they are kept.
//!
//! Machines are shared and swing several-fold from one second to the next, so every claim is a
//! ratio between two things measured in turns within one run, given as the median over the turns
//! with the least and the most.

#![forbid(unsafe_code)]

pub mod broker;
pub mod copy;
pub mod cpu;
pub mod figures;
pub mod machine;
pub mod options;
pub mod plot;
pub mod stream;
pub mod vm;
