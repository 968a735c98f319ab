//! Registrations as plain values, and the decisions that follow from them.
//!
//! A [`Registry`] holds the [`Registration`]s of one partition and the [`Defaults`] for what they
//! leave open. A registration answers three questions about a service: is it enabled, who may bind
//! and connect, and may a listener take the wildcard. Each may be answered differently for one
//! child partition by an [`Override`]. [`Registry::policy`] gives the answers, each with the
//! [`Rule`] that decided.

mod asker;
mod policy;
mod registration;
mod registry;
mod rule;

pub use asker::{Asker, Principal};
pub use policy::{Decision, Policy};
pub use registration::{AccessRule, Defaults, Override, Registration};
pub use registry::{Clash, Registry, UnknownService};
pub use rule::{Action, Rule};
