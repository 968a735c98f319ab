//! The registry of a partition: which services its owner allows, and to whom.
//!
//! [`model`] holds the registrations as plain values with the decisions that follow from them, and
//! does no I/O; the fabric stands on it.

#![forbid(unsafe_code)]

pub mod model;

pub use model::{
    AccessRule, Action, Asker, Clash, Decision, Defaults, Override, Policy, Principal,
    Registration, Registry, Rule, UnknownService,
};
